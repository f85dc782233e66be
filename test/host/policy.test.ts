import { describe, expect, it } from 'vitest'
import { CloudAppError } from '../../src/errors.js'
import { XlFlask } from '../../src/host/flask.js'
import { XlHost } from '../../src/host/host.js'
import { buildPolicy, withoutPermissions } from '../../src/host/policy.js'
import { run } from '../../src/host/run.js'

const CHANGES = [{ source: 'dom0_t', target: 'security_t', class: 'security', permissions: ['load_policy', 'setbool'] }]

describe('withoutPermissions', () => {
  const text = [
    '#line 1 "/xen/dom0.te"',
    'allow dom0_t security_t:security { load_policy setenforce setbool };',
    'auditallow dom0_t security_t:security { load_policy };',
    'allow dom0_t security_t : security setbool;',
    'allow dom0_t xen_t:xen { load_policy };',
    '#line 1 "/ours.te"',
    'allow dom0_t security_t:security setbool;',
    '#line 1 "/xen/other.te"',
    'allow dom0_t security_t:security {',
    '\tload_policy',
    '\tcompute_av',
    '};',
    '',
  ].join('\n')

  it('takes them from the rules of Xen, over lines, and leaves ours', () => {
    expect(withoutPermissions(text, CHANGES, '/ours.te').split('\n')).toEqual([
      '#line 1 "/xen/dom0.te"',
      'allow dom0_t security_t:security { setenforce };',
      '',
      '',
      'allow dom0_t xen_t:xen { load_policy };',
      '#line 1 "/ours.te"',
      'allow dom0_t security_t:security setbool;',
      '#line 1 "/xen/other.te"',
      'allow dom0_t security_t:security { compute_av };',
      '',
    ])
    expect(withoutPermissions(text, [], '/ours.te')).toBe(text)
  })
})

const failing = (work: Promise<unknown>): Promise<unknown> =>
  work.then(
    () => 'nothing',
    (error: unknown) => (CloudAppError.is(error) ? [error.code, error.message] : error),
  )

describe('the tools of the host', () => {
  it('say what is missing and how to get it', async () => {
    const [code, message] = (await failing(buildPolicy({ module: '', changes: [], xenSource: '/nowhere' }))) as string[]
    expect(code).toBe('ERR_CLOUDAPP_NOT_FOUND')
    expect(message).toMatch(/\/nowhere.*apt-get source xen/)
    expect(await failing(run('no-such-program', []))).toEqual([
      'ERR_CLOUDAPP_UNSUPPORTED',
      'no-such-program is not installed',
    ])
    expect(await failing(run('sh', ['-c', 'echo why >&2; exit 3']))).toEqual([
      'ERR_CLOUDAPP_SOURCE',
      "'sh -c echo why >&2; exit 3' failed (3): why",
    ])
  })

  it('reads what xl and flask-get-bool print', async () => {
    const list = [
      'Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID                            Reason-Code\tSecurity Label',
      'Domain-0                                     0  2048     2     r-----      86.1 00000000-0000-0000-0000-000000000000        - system_u:system_r:dom0_t',
      'two words                                   12   256     1     -b----       1.0 00000000-0000-4000-8000-000000000002        - ',
      'garbage',
    ].join('\n')
    expect(await new XlHost(async () => list).list()).toEqual([
      { domid: 0, name: 'Domain-0', uuid: '00000000-0000-0000-0000-000000000000', label: 'system_u:system_r:dom0_t' },
      { domid: 12, name: 'two words', uuid: '00000000-0000-4000-8000-000000000002' },
    ])
    const flask = new XlFlask(async (program) => (program === 'xl' ? 'Permissive\n' : 'a: 1\nb: 0 1 pending\n'))
    expect([...(await flask.booleans())]).toEqual([
      ['a', true],
      ['b', false],
    ])
    expect(await flask.mode()).toBe('permissive')
    const mode = (status: number, text: string) =>
      new XlFlask(() => run('sh', ['-c', `echo ${text} >&${status === 1 ? 1 : 2}; exit ${status}`])).mode()
    expect(await mode(1, 'Enforcing')).toBe('enforcing')
    expect(await mode(2, 'Flask XSM Disabled')).toBe('absent')
    expect(await failing(mode(2, 'what'))).toMatchObject(['ERR_CLOUDAPP_SOURCE', expect.anything()])
    expect(await failing(flask.set('a; reboot', true))).toMatchObject([
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
      expect.anything(),
    ])
  })

  it('destroys the domain it was told of, and no other that has its number', async () => {
    const uuid = '00000000-0000-4000-8000-000000000002'
    const row = `x  7  256  1  -b----  1.0 ${uuid}  - `
    const said: string[] = []
    let there = true
    const host = new XlHost(async (_, args) => {
      said.push(args.join(' '))
      if (args[0] === 'destroy') there = false
      return there ? `head\n${row}\n` : 'head\n'
    })
    expect(await failing(host.destroy(7, uuid.replace('2', '3')))).toMatchObject([
      'ERR_CLOUDAPP_NOT_FOUND',
      expect.anything(),
    ])
    expect(said).not.toContain('destroy 7')
    await host.destroy(7, uuid)
    expect(said).toContain('destroy 7')
  })
})
