import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import {
  buildLabelOf,
  compileFlask,
  directRights,
  type FlaskDelegation,
  type FlaskDomain,
  labelOf,
  labelsLost,
  typeOf,
} from '../../../src/capabilities/flask/index.js'
import { ALL_RIGHTS, type Caveats, type Grant, KeyPair, type Right } from '../../../src/capabilities/index.js'
import { CloudAppError } from '../../../src/errors.js'

const uuid = (n: number): string => `00000000-0000-4000-8000-${String(n).padStart(12, '0')}`
const broker = KeyPair.generate().publicKey

function grant(client: number, rights: readonly Right[], more: Caveats = {}): Grant {
  const vm = { uuid: uuid(client), bootNonce: '0'.repeat(32) }
  return { notBefore: 0, expires: 1, audience: broker, ...more, vm, rights }
}

const domains: readonly FlaskDomain[] = [1, 2, 3, 4].map((n) => ({ name: `d${n}`, uuid: uuid(n) }))
const to = (service: number, client: number, ...rights: Right[]): FlaskDelegation => ({
  service: uuid(service),
  grant: grant(client, rights),
})
const compile = (...delegations: FlaskDelegation[]) => compileFlask({ domains, delegations })

function thrown(work: () => unknown): CloudAppError {
  try {
    work()
  } catch (error) {
    if (CloudAppError.is(error)) return error
    throw error
  }
  throw new Error('nothing was thrown')
}

/** The `allow` rules between two domains of ours, as [source, target, class, permissions, switch]. */
function rulesOf(module: string): string[][] {
  const found: string[][] = []
  let behind = ''
  for (const line of module.split('\n')) {
    behind = /^if \((\w+)\)/.exec(line)?.[1] ?? (line === '}' ? '' : behind)
    const rule = /^\s*allow (ca_\w+_t) (ca_\w+_t):(\w+) \{ ([^}]*) \};/.exec(line)
    if (rule) found.push([...rule.slice(1, 5), behind])
  }
  return found
}

describe('compileFlask', () => {
  it('gives each right its permissions, behind a switch of its own', () => {
    const { module, booleans, coverage } = compile(to(1, 2, 'memory.read', 'vm.pause', 'events.syscall'))
    expect(rulesOf(module)).toEqual([
      [typeOf(uuid(1)), typeOf(uuid(2)), 'domain', 'pause unpause', booleans[0]?.name],
      [typeOf(uuid(1)), typeOf(uuid(2)), 'mmu', 'map_read', booleans[1]?.name],
    ])
    expect(booleans.map(({ right }) => right)).toEqual(['vm.pause', 'memory.read'])
    for (const { name } of booleans) expect(module).toContain(`gen_bool(${name}, false)`)
    expect(coverage.map(({ right, by }) => `${right} ${by}`)).toEqual([
      'vm.pause hypervisor',
      'memory.read hypervisor',
      'events.syscall broker',
    ])
  })

  it('gives nothing to anybody without a delegation', () => {
    const { module, booleans } = compile()
    expect(rulesOf(module)).toEqual([])
    expect(booleans).toEqual([])
    expect(module).not.toContain('if (')
  })

  it('never writes a rule for a pair that was not delegated, or a permission of another right', () => {
    const pair = fc.record({
      service: fc.integer({ min: 1, max: 4 }),
      client: fc.integer({ min: 1, max: 4 }),
      rights: fc.subarray([...ALL_RIGHTS], { minLength: 1 }),
    })
    fc.assert(
      fc.property(fc.array(pair, { maxLength: 8 }), fc.boolean(), (pairs, isPrivate) => {
        const given = pairs.filter(({ service, client, rights }) => {
          if (service === client) return false
          return rights.some((right) =>
            ['vm.info', 'vm.pause', 'memory.read', 'memory.write', 'vcpu.read'].includes(right),
          )
        })
        const delegations = given.map(({ service, client, rights }) => to(service, client, ...rights))
        const { module } = compileFlask({ domains, delegations, private: isPrivate })
        for (const [source = '', target = '', name, permissions = '', behind = ''] of rulesOf(module)) {
          if (source.endsWith('_building_t') || target.includes('_building')) continue
          const held = given
            .filter(({ service, client }) => typeOf(uuid(service)) === source && typeOf(uuid(client)) === target)
            .flatMap(({ rights }) => rights)
          const right = behind.replace(/^ca_[0-9a-f]{32}_[0-9a-f]{32}_/, '').replace('_', '.') as Right
          expect(held).toContain(right)
          const allowed = directRights(grant(1, [right])).length === 1
          expect(allowed).toBe(true)
          if (permissions === 'map_write') expect(right).toBe('memory.write')
          expect(name).toMatch(/^(domain|mmu|hvm)$/)
        }
      }),
    )
  })

  it.each<[string, Caveats]>([
    ['uses', { uses: 3 }],
    ['outputBytes', { outputBytes: 10 }],
    ['bytesPerSecond', { bytesPerSecond: 10 }],
    ['operationsPerSecond', { operationsPerSecond: 10 }],
    ['pauseMsPerMinute', { pauseMsPerMinute: 10 }],
    ['memory', { memory: { kernel: [{ first: 0n, last: 1n }] } }],
    ['processes', { processes: [{ name: 'sshd' }] }],
    ['syscalls', { syscalls: [1] }],
    ['transports', { transports: ['unix'] }],
  ])('refuses a token limited in %s', (dimension, limit) => {
    const error = thrown(() => compile({ service: uuid(1), grant: grant(2, ['memory.read'], limit) }))
    expect(error.code).toBe('ERR_CLOUDAPP_UNSUPPORTED')
    expect(error.details?.dimensions).toEqual([dimension])
    expect(error.message).toContain(dimension)
  })

  it('refuses a token of which Xen can give nothing', () => {
    expect(thrown(() => compile(to(1, 2, 'events.syscall'))).code).toBe('ERR_CLOUDAPP_UNSUPPORTED')
  })

  it('writes nothing into the policy but digits of uuids', () => {
    const hostile = { name: 'x', uuid: 'ffffffff-0000-4000-8000-000000000000; allow dom0_t' }
    expect(thrown(() => compileFlask({ domains: [hostile], delegations: [] })).code).toBe(
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
    )
    const { module } = compileFlask({ domains: [{ name: '); allow a b', uuid: uuid(1) }], delegations: [] })
    expect(module).not.toContain('allow a b')
    expect(labelOf(uuid(1))).toBe('system_u:system_r:ca_00000000000040008000000000000001_t')
  })

  it('locks with one switch, which all stands behind, the switching itself included', () => {
    const delegations = [to(1, 2, 'memory.read'), to(3, 4, 'vcpu.read')]
    const { module, booleans, changes } = compileFlask({ domains, delegations, private: true, locked: true })
    expect(booleans).toEqual([])
    expect(rulesOf(module).map((rule) => rule[4])).toEqual(['ca_live', 'ca_live'])
    expect(module.match(/gen_bool/g)).toHaveLength(1)
    expect(module).toContain('if (ca_live) {\n  allow dom0_t security_t:security setbool;\n}')
    expect(module).not.toContain('create_domain')
    expect(changes.find(({ class: name }) => name === 'security')?.permissions).toContain('setbool')
    expect(thrown(() => compileFlask({ domains, delegations, locked: true })).code).toBe(
      'ERR_CLOUDAPP_INVALID_ARGUMENT',
    )
  })

  it('is bounded, and knows its domains', () => {
    const many = Array.from({ length: 257 }, (_, n) => ({ name: `d${n}`, uuid: uuid(n) }))
    expect(thrown(() => compileFlask({ domains: many, delegations: [] })).code).toBe('ERR_CLOUDAPP_LIMIT')
    expect(thrown(() => compile(to(1, 9, 'memory.read'))).code).toBe('ERR_CLOUDAPP_NOT_FOUND')
    expect(thrown(() => compile(to(1, 1, 'memory.read'))).code).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    const twice = [...domains, { name: 'again', uuid: uuid(1) }]
    expect(thrown(() => compileFlask({ domains: twice, delegations: [] })).code).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  })
})

it('names the labels of ours it would not know, and leaves those of others alone', () => {
  const theirs = ['system_u:system_r:dom0_t', 'system_u:system_r:domU_t', 'system_u:system_r:ca_short_t']
  const gone = [labelOf(uuid(9)), buildLabelOf(uuid(1))]
  expect(labelsLost(compile(), [...theirs, labelOf(uuid(1)), ...gone])).toEqual(gone)
  const isPrivate = compileFlask({ domains, delegations: [], private: true })
  expect(labelsLost(isPrivate, [...theirs, labelOf(uuid(1)), ...gone])).toEqual([labelOf(uuid(9))])
})
