import { encode } from 'cborg'
import fc from 'fast-check'
import { describe, expect, test, vi } from 'vitest'
import { encodeBlock, nextLink, ROOT_LINK, type SignedBlock, signedBytes } from '../../src/capabilities/block.js'
import {
  ALL_RIGHTS,
  attenuateToken,
  inspectToken,
  type KeyPair,
  type Narrowing,
  type Right,
  TOKEN_LIMITS,
} from '../../src/capabilities/index.js'
import { newBlockId } from '../../src/capabilities/mint.js'
import { encodeToken, parseToken, tokenFromText, tokenToText } from '../../src/capabilities/token.js'
import { broker, fault, holders, mint, NOW, owner, reason, sd, verify, vm } from './rig.js'

// Many runs, perhaps on a busy machine.
vi.setConfig({ testTimeout: 120_000 })

const [, second, third] = holders as [KeyPair, KeyPair, KeyPair]

/** Appends a block that nobody checked: what a hostile holder writes. */
function appendUnchecked(token: Uint8Array, signer: KeyPair, narrowing: Narrowing, to = signer.publicKey): Uint8Array {
  const { signed } = parseToken(token)
  const payload = encodeBlock({ id: newBlockId(), holder: to, narrowing })
  const link = signed.reduce<Uint8Array>(nextLink, ROOT_LINK)
  return encodeToken([...signed, { payload, signature: signer.sign(signedBytes(link, payload)) }])
}

function chain(): Uint8Array {
  const one = attenuateToken(mint(), { holder: sd, to: second.publicKey, uses: 10 })
  return attenuateToken(one, { holder: second, to: third.publicKey, rights: ['memory.read'], uses: 5 })
}

describe('a chain', () => {
  test('says who may do what, and until when', () => {
    const token = verify(chain())
    expect(token.issuer).toBe(owner.publicKey)
    expect(token.holder).toBe(third.publicKey)
    expect(token.grant).toMatchObject({
      vm,
      rights: ['memory.read'],
      uses: 5,
      expires: NOW + 600_000,
      audience: broker.publicKey,
    })
    expect(token.blocks.map(({ signer }) => signer)).toEqual([owner, sd, second].map(({ publicKey }) => publicKey))
    expect(token.blocks.map(({ narrowing }) => narrowing.uses)).toEqual([undefined, 10, 5])
    expect(new Set(token.ids).size).toBe(3)
  })

  test('survives its text form, and only that one', () => {
    const text = tokenToText(chain())
    expect(verify(tokenFromText(` ${text}\n`)).ids).toHaveLength(3)
    for (const bad of [
      `${text}=`,
      text.replace('cloudapp1', 'cloudapp2'),
      `${text}\u0000`,
      text.slice(10),
      `${text}!`,
    ]) {
      expect(fault(() => tokenFromText(bad)).code).toBe('ERR_CLOUDAPP_TOKEN')
    }
    expect(fault(() => tokenFromText('cloudapp1.'.padEnd(1e6, 'A'))).code).toBe('ERR_CLOUDAPP_TOKEN')
  })

  test('is full at its bounds', () => {
    let token = mint()
    for (let i = 1; i < TOKEN_LIMITS.blocks; i++) token = attenuateToken(token, { holder: sd })
    expect(verify(token).ids).toHaveLength(16)
    expect(fault(() => attenuateToken(token, { holder: sd })).code).toBe('ERR_CLOUDAPP_LIMIT')
    expect(reason(appendUnchecked(token, sd, {}))).toBe('malformed')
    const wide = { syscalls: Array.from({ length: 512 }, (_, i) => i * 128) }
    let long = mint()
    expect(
      fault(() => Array.from({ length: 15 }, () => (long = attenuateToken(long, { holder: sd, ...wide })))).code,
    ).toBe('ERR_CLOUDAPP_LIMIT')
  })
})

describe('a chain that is refused', () => {
  test.each([
    ['rights', { rights: ['memory.write'] }],
    ['expires', { expires: NOW + 600_001 }],
    ['notBefore', { notBefore: NOW - 60_001 }],
    ['audience', { audience: sd.publicKey }],
    ['uses', { uses: 4 }],
    ['memory', { memory: { physical: [{ first: 0n, last: 0x2000n }] } }],
    ['memory', { memory: { kernel: [{ first: 0n, last: 0n }] } }],
    ['processes', { processes: [{ name: 'nginx' }] }],
    ['processes', { processes: [{ cgroup: '/a.slice2' }] }],
    ['syscalls', { syscalls: [1, 2, 3] }],
    ['transports', { transports: ['unix', 'tls'] }],
    ['outputBytes', { outputBytes: 11 }],
    ['bytesPerSecond', { bytesPerSecond: 11 }],
    ['operationsPerSecond', { operationsPerSecond: 11 }],
    ['pauseMsPerMinute', { pauseMsPerMinute: 11 }],
  ] as const)('because a block widens %s', (dimension, narrowing) => {
    const root = mint({
      ...{ uses: 3, outputBytes: 10, bytesPerSecond: 10, operationsPerSecond: 10, pauseMsPerMinute: 10 },
      memory: { physical: [{ first: 0n, last: 0x1fffn }] },
      processes: [{ cgroup: '/a.slice' }],
      syscalls: [1, 2],
      transports: ['unix'],
    })
    const asked = narrowing as Narrowing
    expect(fault(() => attenuateToken(root, { holder: sd, ...asked }))).toMatchObject({
      code: 'ERR_CLOUDAPP_TOKEN',
      details: { reason: 'widening', dimension },
    })
    const forged = appendUnchecked(root, sd, asked)
    expect(fault(() => verify(forged))).toMatchObject({ details: { reason: 'widening', block: 1, dimension } })
  })

  test('because a later block takes back what one in between gave away', () => {
    const narrow = attenuateToken(mint(), { holder: sd, rights: ['vm.info'] })
    expect(reason(appendUnchecked(narrow, sd, { rights: ['vm.info', 'memory.read'] }))).toBe('widening')
  })

  test('for its place, its time and its revocation', () => {
    const token = chain()
    const ids = verify(token).ids
    const ownership = { owner: owner.publicKey, bootNonce: vm.bootNonce }
    expect(reason(token, { broker: sd.publicKey })).toBe('audience')
    expect(reason(token, { ownerOf: () => undefined })).toBe('vm')
    expect(reason(token, { ownerOf: () => ({ ...ownership, bootNonce: 'ff'.repeat(16) }) })).toBe('vm')
    expect(reason(token, { ownerOf: () => ({ ...ownership, owner: sd.publicKey }) })).toBe('owner')
    expect(reason(token, { now: NOW + 600_000 })).toBe('ERR_CLOUDAPP_EXPIRED')
    expect(reason(token, { now: Number.NaN })).toBe('ERR_CLOUDAPP_EXPIRED')
    expect(reason(token, { now: NOW - 60_001 })).toBe('not-yet-valid')
    for (const id of ids) expect(reason(token, { revoked: (block) => block === id })).toBe('ERR_CLOUDAPP_REVOKED')
    const bound = mint({ transports: ['vchan'] })
    expect(reason(bound)).toBe('transport')
    expect(verify(bound, { transport: 'vchan' }).grant.transports).toEqual(['vchan'])
  })

  test('because another key than the owner signed a well-formed root', () => {
    expect(reason(mint({ owner: sd }))).toBe('owner')
    const { signed, blocks } = parseToken(mint())
    const payload = encodeBlock(blocks[0] as (typeof blocks)[0])
    const forged = encodeToken([{ payload, signature: sd.sign(signedBytes(ROOT_LINK, payload)) }])
    expect(Buffer.compare(signed[0]?.payload as Uint8Array, payload)).toBe(0)
    expect(reason(forged)).toBe('signature')
  })

  test('because a block was dropped, moved or taken from another chain', () => {
    const { signed } = parseToken(chain())
    const other = parseToken(chain()).signed
    const [a, b, c] = signed as [SignedBlock, SignedBlock, SignedBlock]
    for (const blocks of [
      [a, c],
      [a, c, b],
      [a, b, b],
      [b, c],
      [c, b, a],
      [a, other[1] as SignedBlock, c],
    ]) {
      expect(['signature', 'malformed', 'widening']).toContain(reason(encodeToken(blocks)))
    }
    expect(reason(encodeToken([a, c]))).toBe('signature')
    expect(reason(encodeToken([other[0] as SignedBlock, b, c]))).toBe('signature')
    // Without its tail it is the token the earlier holder had, whose key alone can prove possession of it.
    expect(verify(encodeToken([a, b])).holder).toBe(second.publicKey)
  })

  test('because somebody else than the holder appended', () => {
    expect(fault(() => attenuateToken(mint(), { holder: second })).details?.reason).toBe('signature')
    expect(reason(appendUnchecked(mint(), second, { uses: 1 }))).toBe('signature')
  })

  test('because it holds something this version does not know', () => {
    const root = parseToken(mint()).signed[0] as SignedBlock
    const link = nextLink(ROOT_LINK, root)
    const forge = (entries: [number, unknown][]) => {
      const payload = encode(new Map<number, unknown>([[1, Buffer.alloc(16)], [2, Buffer.alloc(32, 7)], ...entries]))
      return encodeToken([root, { payload, signature: sd.sign(signedBytes(link, payload)) }])
    }
    expect(verify(forge([[4, new Map([[5, 3]])]])).grant.uses).toBe(3)
    expect(reason(forge([[4, new Map([[13, 3]])]]))).toBe('malformed')
    expect(reason(forge([[4, new Map([[10, new Map([[4, [[0, 1]]]])]])]]))).toBe('malformed')
    expect(reason(forge([[4, new Map()]]))).toBe('malformed')
    expect(reason(forge([[3, [15]]]))).toBe('malformed')
    expect(reason(forge([[3, [4, 1]]]))).toBe('malformed')
    expect(reason(forge([[5, Buffer.alloc(32)]]))).toBe('malformed')
    expect(reason(forge([[7, 1]]))).toBe('malformed')
    expect(reason(forge([[4, new Map([[5, 1.5]])]]))).toBe('malformed')
    expect(reason(forge([[4, new Map([[5, -1]])]]))).toBe('malformed')
    expect(reason(forge([[4, new Map([[5, 2n ** 53n]])]]))).toBe('malformed')
  })
})

describe('bits', () => {
  test('any one flipped is refused', () => {
    const token = chain()
    fc.assert(
      fc.property(fc.integer({ min: 0, max: token.length * 8 - 1 }), (bit) => {
        const bad = Uint8Array.from(token)
        bad[bit >> 3] = (bad[bit >> 3] as number) ^ (1 << (bit & 7))
        expect(fault(() => verify(bad)).code).toBe('ERR_CLOUDAPP_TOKEN')
      }),
      { numRuns: 2000 },
    )
  })

  test('cut off or added to is refused', () => {
    const token = chain()
    for (let length = 0; length < token.length; length++) expect(reason(token.subarray(0, length))).toBe('malformed')
    expect(reason(Buffer.concat([token, Buffer.alloc(1)]))).toBe('malformed')
  })
})

test('inspect puts a token into words', () => {
  const about = inspectToken(attenuateToken(chain(), { holder: third, processes: [{ name: 'nginx', cgroup: '/web' }] }))
  expect(about.blocks).toHaveLength(4)
  expect(about.words).toEqual([
    "It may read the VM's memory. Risk: sees passwords, keys and data that are in memory.",
    `Only on the VM ${vm.uuid}, until it is started anew.`,
    `From ${new Date(NOW - 60_000).toISOString()} until ${new Date(NOW + 600_000).toISOString()}.`,
    expect.stringMatching(/^Only through the broker [0-9a-f]{16}\.$/),
    'At most 5 operations in all.',
    "Of memory only: the processes' memory 0x0–0xffffffffffffffff.",
    'Only the processes: named nginx in /web.',
  ])
})

test('inspect says what a limit to some system calls takes away, and what not', () => {
  const limited = (rights: readonly Right[], syscalls: number[]) =>
    inspectToken(mint({ rights, syscalls })).words.filter((word) => /system call|refuses/.test(word))
  expect(limited(['memory.read', 'events.memory', 'events.register'], [1, 59])).toEqual([
    'Of system calls it is told only of: 1, 59.',
    'The broker can not hold these to that, and refuses them: events.register, events.memory.',
    'What it may read of memory or registers shows any system call under way.',
  ])
  expect(limited(['vm.info'], [])).toEqual(['Of system calls it is told only of: none.'])
  const refused = inspectToken(mint({ rights: ALL_RIGHTS, syscalls: [1] }))
    .words.join(' ')
    .split('refuses them: ')[1]
  for (const right of ALL_RIGHTS) {
    const kept = ['vm.info', 'vm.pause', 'memory.read', 'vcpu.read'].includes(right)
    expect(refused?.includes(right)).toBe(!kept)
  }
})

test('misuse is refused with the reason', () => {
  const code = (call: () => unknown) => fault(call).code
  expect(code(() => mint({ expire: 1 } as never))).toBe('ERR_CLOUDAPP_UNKNOWN_OPTION')
  expect(code(() => mint({ rights: [] }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(fault(() => mint({ rights: ['memory.raed' as never] })).message).toContain("did you mean 'memory.read'")
  expect(code(() => mint({ expires: '10 minutes' }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(code(() => mint({ expires: NOW - 60_000 }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(code(() => mint({ vm: { ...vm, uuid: vm.uuid.toUpperCase() } }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(code(() => mint({ processes: [{}] }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(code(() => mint({ processes: [{ cgroup: '/a/../b' }] }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(code(() => mint({ memory: { physical: [{ first: 2n, last: 1n }] } }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(code(() => mint({ memory: 1 as never }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
  expect(code(() => mint({ uses: 1.5 }))).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
})
