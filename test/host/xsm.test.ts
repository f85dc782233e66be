import { describe, expect, it } from 'vitest'
import { xsmCheck } from '../../src/cli/doctor/xsm.js'

describe('doctor: xsm', () => {
  it('says whether Xen enforces, and warns of set_target where it does not', () => {
    expect(xsmCheck('enforcing', [])).toMatchObject({ status: 'ok' })
    expect(xsmCheck('permissive', [])).toMatchObject({ status: 'bad', fix: expect.stringContaining('setenforce 1') })
    expect(xsmCheck('absent', [])).toMatchObject({ status: 'missing', found: expect.stringContaining('set_target') })
    expect(xsmCheck('absent', [{ domid: 4, target: '3' }])).toMatchObject({
      status: 'bad',
      found: expect.stringContaining('4 has 3'),
    })
  })
})
