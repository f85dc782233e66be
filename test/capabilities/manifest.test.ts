import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { parseManifest, readManifest } from '../../src/capabilities/manifest.js'
import { CloudAppError } from '../../src/errors.js'
import { temporaryFolder } from '../service/support.js'

const good = {
  cloudapp: 1,
  name: 'ids',
  title: 'Intrusion detector',
  version: '1.0.0',
  vendor: 'Acme',
  rights: [
    { right: 'memory.read', reason: 'to look for hidden processes' },
    { right: 'vcpu.read', reason: 'to check the system-call entry', optional: true },
  ],
  publishes: ['findings'],
}

describe('a manifest', () => {
  it('is read from a file as it is', async () => {
    const path = join(temporaryFolder(), 'cloudapp.json')
    writeFileSync(path, JSON.stringify(good))
    expect(await readManifest(path)).toEqual(good)
    writeFileSync(path, '{')
    await expect(readManifest(path)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    await expect(readManifest('/no/such.json')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
  })

  it.each<[string, object, string]>([
    ['an unknown field', { price: 1 }, 'price'],
    ['a right outside the vocabulary', { rights: [{ right: 'root', reason: 'x' }] }, 'rights.0.right'],
    ['a right without a reason', { rights: [{ right: 'vm.info' }] }, 'rights.0.reason'],
    ['a right asked for twice', { rights: [good.rights[0], good.rights[0]] }, 'rights'],
    ['a name that is no word', { name: '../ids' }, 'name'],
    ['another format', { cloudapp: 2 }, 'cloudapp'],
    ['a publisher that is no key', { publisher: 'acme' }, 'publisher'],
  ])('is refused with %s', (_, spoil, path) => {
    try {
      parseManifest({ ...good, ...spoil })
      expect.unreachable()
    } catch (error) {
      expect(error).toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
      expect((error as CloudAppError).message).toContain(path)
    }
  })

  it('is refused, whatever it is, with nothing but our error', () => {
    fc.assert(
      fc.property(fc.anything(), (value) => {
        expect(() => parseManifest(value)).toThrow(CloudAppError)
      }),
    )
  })
})
