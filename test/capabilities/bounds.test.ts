import { Session } from 'node:inspector/promises'
import { encode } from 'cborg'
import { describe, expect, test, vi } from 'vitest'
import { encodeBlock, nextLink, ROOT_LINK, type SignedBlock, signedBytes } from '../../src/capabilities/block.js'
import {
  type AddressRange,
  type MintOptions,
  type Narrowing,
  type ProcessScope,
  parseToken,
  TOKEN_LIMITS,
} from '../../src/capabilities/index.js'
import { verifySignature } from '../../src/capabilities/keys.js'
import { newBlockId } from '../../src/capabilities/mint.js'
import { encodeToken } from '../../src/capabilities/token.js'
import { mint, reason, sd, verify } from './rig.js'

// Many runs, perhaps on a busy machine.
vi.setConfig({ testTimeout: 120_000 })

/** Signatures checked, by the real function. */
const checks = vi.hoisted(() => ({ made: 0 }))
vi.mock('node:crypto', async (original) => {
  const crypto = await original<typeof import('node:crypto')>()
  const verify = (...args: Parameters<typeof crypto.verify>) => {
    checks.made++
    return crypto.verify(...args)
  }
  return { ...crypto, verify }
})

/** Appends a payload as a hostile holder does, who asks nobody whether it is good. */
function append(signed: readonly SignedBlock[], payload: Uint8Array): SignedBlock[] {
  const link = signed.reduce<Uint8Array>(nextLink, ROOT_LINK)
  return [...signed, { payload, signature: sd.sign(signedBytes(link, payload)) }]
}

const payloadOf = (narrowing: Narrowing) => encodeBlock({ id: newBlockId(), holder: sd.publicKey, narrowing })
const rootOf = (token: Uint8Array) => parseToken(token).signed

/** The root and as many good blocks of `make(i)` as there may be of blocks and of bytes. */
function largest(first: Narrowing, make: (i: number) => Narrowing): Uint8Array {
  let signed = rootOf(mint(first as Partial<MintOptions>))
  for (let i = 1; i < TOKEN_LIMITS.blocks; i++) {
    const longer = append(signed, payloadOf(make(i)))
    if (encodeToken(longer).length > TOKEN_LIMITS.bytes) break
    signed = longer
  }
  return encodeToken(signed)
}

const many = <T>(count: number, make: (i: number) => T): T[] => Array.from({ length: count }, (_, i) => make(i))
const letters = (i: number) => String.fromCharCode(97 + (i >> 4), 97 + (i & 15))

/**
 * Processes of block `i`: all but the last are a dead end, and the next block's all lie below the last, so that each of
 * them is held against each of these.
 */
function processes(i: number, count: number = TOKEN_LIMITS.processes): ProcessScope[] {
  const above = '/z'.repeat(i)
  return [...many(count - 1, (n) => ({ cgroup: `${above}/${letters(n)}` })), { cgroup: `${above}/z` }]
}

const ranges = (i: number, step: bigint): AddressRange[] =>
  many(TOKEN_LIMITS.ranges, (n) => ({
    first: BigInt(n) * step + BigInt(i),
    last: BigInt(n + 1) * step - BigInt(i) - 2n,
  }))

const numbers = many(TOKEN_LIMITS.syscalls, (n) => n + TOKEN_LIMITS.syscallNumber - TOKEN_LIMITS.syscalls)
const small = many(TOKEN_LIMITS.syscalls, (n) => n)

/** Chains that come as near as can be to all bounds at once, by what most of them is. */
const LARGEST: [string, Uint8Array][] = [
  ['blocks', largest({}, () => ({ uses: 5 }))],
  ['cgroups', largest({ processes: processes(0) }, (i) => ({ processes: processes(i) }))],
  [
    'long cgroups',
    largest({}, () => ({
      processes: many(32, (n) => ({ name: 'n'.repeat(15), cgroup: `/${'c'.repeat(252)}${letters(n)}` })),
    })),
  ],
  [
    'physical ranges',
    largest({ memory: { physical: ranges(0, 1n << 20n) } }, (i) => ({ memory: { physical: ranges(i, 1n << 20n) } })),
  ],
  [
    'small ranges',
    largest({ memory: { physical: ranges(0, 64n) } }, (i) => ({ memory: { physical: ranges(i, 64n) } })),
  ],
  [
    'ranges of every kind',
    largest({}, (i) => ({
      memory: { physical: ranges(i, 1n << 40n), kernel: ranges(i, 1n << 57n), process: ranges(i, 1n << 20n) },
    })),
  ],
  ['system calls', largest({ syscalls: numbers }, () => ({ syscalls: numbers }))],
  ['small system calls', largest({ syscalls: small }, () => ({ syscalls: small }))],
]

/** The shortest of some rounds: what a busy machine adds is in the others. In ms. */
function fastest(rounds: number, ...calls: (() => void)[]): number[] {
  const times = calls.map(() => Number.POSITIVE_INFINITY)
  for (let round = 0; round < rounds; round++) {
    for (const [i, call] of calls.entries()) {
      const began = performance.now()
      call()
      times[i] = Math.min(times[i] as number, performance.now() - began)
    }
  }
  return times
}

/** As many signature checks as `signed` has blocks, over payloads as long. */
const signatures = (signed: readonly SignedBlock[]) => () => {
  for (const { payload, signature } of signed) verifySignature(sd.publicKey, payload, signature)
}

/** Bytes that `call` allocates in the heap of JavaScript, those that were freed again included. */
async function allocated(call: () => void): Promise<number> {
  const rounds = 4
  const session = new Session()
  session.connect()
  const all = { includeObjectsCollectedByMajorGC: true, includeObjectsCollectedByMinorGC: true }
  await session.post('HeapProfiler.startSampling', { samplingInterval: 512, ...all })
  for (let i = 0; i < rounds; i++) call()
  const { profile } = await session.post('HeapProfiler.stopSampling')
  session.disconnect()
  const sum = ({ selfSize, children }: typeof profile.head): number =>
    children.reduce((total, child) => total + sum(child), selfSize)
  return sum(profile.head) / rounds
}

describe('the largest tokens', () => {
  test('come near to the bounds', () => {
    expect(Math.max(...LARGEST.map(([, token]) => parseToken(token).signed.length))).toBe(TOKEN_LIMITS.blocks)
    expect(Math.max(...LARGEST.map(([, token]) => token.length))).toBeGreaterThan(TOKEN_LIMITS.bytes * 0.9)
  })

  test.each(LARGEST)(
    'of %s cost a few times what their signatures do, and memory by their length',
    async (_, token) => {
      const { signed } = parseToken(token)
      checks.made = 0
      verify(token)
      expect(checks.made).toBe(signed.length)
      const [whole, part] = fastest(40, () => verify(token), signatures(signed)) as [number, number]
      // Measured: 1.3 to 2.6 times, and 10 to 93 bytes a byte.
      expect(whole).toBeLessThan(8 * part)
      expect(await allocated(() => verify(token))).toBeLessThan(256 * token.length)
    },
  )
})

/** One more than is allowed of each thing, in a chain that is signed as it must be. */
const OVER: [string, Uint8Array][] = [
  [
    'blocks',
    encodeToken(many(TOKEN_LIMITS.blocks, () => 0).reduce((signed) => append(signed, payloadOf({})), rootOf(mint()))),
  ],
  [
    'bytes',
    encodeToken(
      many(12, () => numbers).reduce((signed, syscalls) => append(signed, payloadOf({ syscalls })), rootOf(mint())),
    ),
  ],
  ...(
    [
      ['ranges', { memory: { kernel: many(65, (n) => ({ first: BigInt(n * 4), last: BigInt(n * 4 + 1) })) } }],
      ['processes', { processes: processes(0, 33) }],
      ['system calls', { syscalls: many(513, (n) => n) }],
      ['letters of a name', { processes: [{ name: 'n'.repeat(16) }] }],
      ['letters of a cgroup', { processes: [{ cgroup: `/${'c'.repeat(255)}` }] }],
      ['letters of a cgroup, by far', { processes: [{ cgroup: '/c'.repeat(7900) }] }],
      ['letters of a cgroup, by far, and one that has no place', { processes: [{ cgroup: `${'/c'.repeat(7900)}\0` }] }],
    ] as [string, Narrowing][]
  ).map(([what, narrowing]): [string, Uint8Array] => [what, encodeToken(append(rootOf(mint()), payloadOf(narrowing)))]),
  ...(
    [
      ['rights', encode(new Map<number, unknown>([[3, many(15_000, () => 1)]]))],
      ['items in a header', Buffer.from('a1049b001fffffffffffff', 'hex')],
      ['lists in one another', Buffer.concat([Buffer.from('a103', 'hex'), Buffer.alloc(15_000, 0x81)])],
      ['lists', encode(new Map<number, unknown>([[4, many(7_000, () => [[]])]]))],
    ] as [string, Uint8Array][]
  ).map(([what, payload]): [string, Uint8Array] => [what, encodeToken(append(rootOf(mint()), payload))]),
]

describe('more than is allowed', () => {
  test.each(OVER)('of %s is refused before any signature is looked at', (_, token) => {
    checks.made = 0
    expect(reason(token)).toBe('malformed')
    expect(checks.made).toBe(0)
    const most = many(TOKEN_LIMITS.blocks, () => rootOf(mint())[0] as SignedBlock)
    const [whole, part] = fastest(40, () => reason(token), signatures(most)) as [number, number]
    expect(whole).toBeLessThan(8 * part)
  })

  test('in the last block of a full chain is as well', () => {
    const wide = { cgroup: '/y' }
    const signed = many(TOKEN_LIMITS.blocks - 2, (i) => processes(i + 1)).reduce(
      (chain, list) => append(chain, payloadOf({ processes: list })),
      rootOf(mint({ processes: processes(0) })),
    )
    checks.made = 0
    expect(reason(encodeToken(append(signed, payloadOf({ processes: [wide] }))))).toBe('widening')
    expect(checks.made).toBe(0)
  })
})
