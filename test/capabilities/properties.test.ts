import fc from 'fast-check'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { decodeBlock, dimension, encodeBlock, type SignedBlock } from '../../src/capabilities/block.js'
import {
  attenuateToken,
  CAVEAT_NAMES,
  type Grant,
  inCgroup,
  type KeyPair,
  type Narrowing,
  parseToken,
} from '../../src/capabilities/index.js'
import { inspectToken } from '../../src/capabilities/inspect.js'
import { findWidening, narrowGrant } from '../../src/capabilities/narrow.js'
import { encodeToken } from '../../src/capabilities/token.js'
import { CloudAppError } from '../../src/errors.js'
import { narrowing, rights } from './arbitraries.js'
import { holders, mint, NOW, reason, sd, verify } from './rig.js'

// Many runs, perhaps on a busy machine.
vi.setConfig({ testTimeout: 120_000 })

/** Says of one concrete act whether a grant allows it: written anew here, point by point, and not by set algebra. */
interface Act {
  right: string
  time: number
  transport: string
  memory: 'physical' | 'kernel' | 'process'
  address: bigint
  process: { name: string; cgroup: string }
  syscall: number
  amount: number
}

const act: fc.Arbitrary<Act> = fc.record({
  right: rights.map((words) => words[0] as string),
  time: fc.integer({ min: NOW - 12, max: NOW + 12 }),
  transport: fc.constantFrom('unix', 'vchan', 'tls', 'process'),
  memory: fc.constantFrom('physical', 'kernel', 'process'),
  address: fc.oneof(fc.bigInt({ min: 0n, max: 41n }), fc.bigInt({ min: 2n ** 64n - 22n, max: 2n ** 64n - 1n })),
  process: fc.record({
    name: fc.constantFrom('nginx', 'sshd', 'worker', 'other'),
    cgroup: fc.constantFrom(
      '/',
      '/system.slice',
      '/system.slice/nginx.service',
      '/system.slice/x',
      '/system.slicer',
      '/z',
    ),
  }),
  syscall: fc.integer({ min: 0, max: 10 }),
  amount: fc.integer({ min: 0, max: 13 }),
})

const AMOUNTS = ['uses', 'outputBytes', 'bytesPerSecond', 'operationsPerSecond', 'pauseMsPerMinute'] as const

function allows(grant: Grant, of: Act): boolean {
  const { memory, processes, syscalls, transports } = grant
  if (!grant.rights.some((right) => right === of.right)) return false
  if (of.time < grant.notBefore || of.time >= grant.expires) return false
  if (transports !== undefined && !transports.some((name) => name === of.transport)) return false
  if (syscalls !== undefined && !syscalls.includes(of.syscall)) return false
  if (AMOUNTS.some((name) => grant[name] !== undefined && of.amount > (grant[name] as number))) return false
  if (memory !== undefined) {
    const inside = memory[of.memory]?.some(({ first, last }) => first <= of.address && of.address <= last)
    if (inside !== true) return false
  }
  if (processes === undefined) return true
  return processes.some(
    ({ name, cgroup }) =>
      (name === undefined || name === of.process.name) && (cgroup === undefined || inCgroup(of.process.cgroup, cgroup)),
  )
}

/** Wishes that say little, about the same things: so that most acts are decided by what is said of those. */
const steps = fc
  .tuple(
    fc.subarray([...CAVEAT_NAMES, 'rights'] as (keyof Narrowing)[], { minLength: 1, maxLength: 2 }),
    fc.array(narrowing, { minLength: 2, maxLength: 4 }),
  )
  .map(([names, wishes]) =>
    wishes.map((wish) => Object.fromEntries(names.map((name) => [name, wish[name]])) as Narrowing),
  )

const HELD = ['vm.info', 'memory.read', 'events.syscall'] as const
const likelyAct = fc
  .tuple(act, fc.constantFrom(...HELD), fc.boolean())
  .map(([one, right, now]) => ({ ...one, right, time: now ? NOW : one.time }))

describe('appending', () => {
  test('never widens: no act that was refused before is allowed after', () => {
    let appended = 0
    fc.assert(
      fc.property(steps, fc.array(likelyAct, { minLength: 30, maxLength: 30 }), (wishes, acts) => {
        let grant = inspectToken(mint({ rights: HELD, notBefore: NOW - 10, expires: NOW + 10 })).grant
        for (const wish of wishes) {
          const form = decodeBlock(encodeBlock({ ...BLOCK, narrowing: wish }), false).narrowing
          if (findWidening(grant, form) !== undefined) continue
          const after = narrowGrant(grant, form)
          appended++
          const asked = { ...after, ...form, memory: form.memory ?? after.memory } as Grant
          const wider = acts.find((one) => allows(after, one) && !(allows(grant, one) && allows(asked, one)))
          expect(wider).toBeUndefined()
          grant = after
        }
      }),
      { numRuns: 3000 },
    )
    expect(appended).toBeGreaterThan(1000)
  })

  test('nor does a chain of real blocks', () => {
    fc.assert(
      fc.property(steps, fc.array(likelyAct, { minLength: 20, maxLength: 20 }), (wishes, acts) => {
        let token = mint({ rights: HELD, notBefore: NOW - 10, expires: NOW + 10 })
        for (const wish of wishes) {
          const before = inspectToken(token).grant
          try {
            token = attenuateToken(token, { holder: sd, ...wish })
          } catch (error) {
            if (!CloudAppError.is(error, 'ERR_CLOUDAPP_TOKEN')) throw error
            continue
          }
          const after = inspectToken(token).grant
          expect(acts.find((one) => allows(after, one) && !allows(before, one))).toBeUndefined()
        }
      }),
      { numRuns: 500 },
    )
  })

  test('and what a block asks for and may have, it gets, no less', () => {
    fc.assert(
      fc.property(narrowing, narrowing, fc.array(act, { minLength: 20, maxLength: 20 }), (first, second, acts) => {
        const root = inspectToken(
          mint({ rights: ['vm.info', 'memory.read'], notBefore: NOW - 10, expires: NOW + 10 }),
        ).grant
        const grant = narrowGrant(root, without(first, root))
        const wish = without(second, grant)
        const after = narrowGrant(grant, wish)
        for (const one of acts) {
          const asked = {
            ...grant,
            ...wish,
            ...(wish.processes && !wish.memory ? { memory: after.memory } : {}),
          } as Grant
          if (allows(grant, one) && allows(asked, one)) expect(allows(after, one)).toBe(true)
        }
      }),
      { numRuns: 1000 },
    )
  })

  test('twice the same changes nothing', () => {
    fc.assert(
      fc.property(narrowing, (wish) => {
        const root = inspectToken(mint({ notBefore: NOW - 10, expires: NOW + 10 })).grant
        const once = narrowGrant(root, without(wish, root))
        expect(findWidening(once, without(wish, root))).toBeUndefined()
        expect(narrowGrant(once, without(wish, root))).toEqual(once)
      }),
      { numRuns: 1000 },
    )
  })
})

/** The part of a narrowing that does not widen `grant`, in the one order the wire form has. */
function without(wish: Narrowing, grant: Grant): Narrowing {
  let left: Narrowing = decodeBlock(encodeBlock({ ...BLOCK, narrowing: wish }), false).narrowing
  for (let wide = findWidening(grant, left); wide !== undefined; wide = findWidening(grant, left)) {
    const { [wide.dimension]: _, ...rest } = left
    left = rest
  }
  return left
}

const BLOCK = { id: 'ab'.repeat(16), holder: sd.publicKey }

describe('the form', () => {
  test('is unique: what is decoded is encoded to the same bytes', () => {
    fc.assert(
      fc.property(narrowing, (wish) => {
        const bytes = encodeBlock({ ...BLOCK, narrowing: wish })
        const again = encodeBlock(decodeBlock(bytes, false))
        expect(Buffer.compare(bytes, again)).toBe(0)
      }),
      { numRuns: 2000 },
    )
  })

  test('every dimension is reflexive and transitive', () => {
    fc.assert(
      fc.property(narrowing, narrowing, narrowing, (a, b, c) => {
        for (const name of CAVEAT_NAMES) {
          const { within } = dimension(name)
          const [x, y, z] = [a[name], b[name], c[name]]
          if (x !== undefined) expect(within(x, x)).toBe(true)
          if (x === undefined || y === undefined || z === undefined) continue
          if (within(x, y) && within(y, z)) expect(within(x, z)).toBe(true)
        }
      }),
      { numRuns: 3000 },
    )
  })
})

/** A chain as it grew: the token after each block, and who held it then. */
interface Growth {
  readonly tokens: Uint8Array[]
  readonly keys: KeyPair[]
}

/** Appends a block for each wish, without what it may not have. Few keys, so that one often signs several blocks. */
function grow(from: Growth, wishes: readonly (readonly [Narrowing, number])[]): Growth {
  const tokens = [...from.tokens]
  const keys = [...from.keys]
  for (const [wish, to] of wishes) {
    const token = tokens.at(-1) as Uint8Array
    const { notBefore: _, expires: __, transports: ___, ...rest } = wish
    const next = holders[to] as KeyPair
    const narrower = without(rest, inspectToken(token).grant)
    tokens.push(attenuateToken(token, { holder: keys.at(-1) as KeyPair, to: next.publicKey, ...narrower }))
    keys.push(next)
  }
  return { tokens, keys }
}

const wishes = fc.array(fc.tuple(narrowing, fc.nat(2)), { minLength: 2, maxLength: 5 })
const root = (): Growth => ({ tokens: [mint({ rights: HELD })], keys: [sd] })
const blocksOf = ({ tokens }: Growth) => [...parseToken(tokens.at(-1) as Uint8Array).signed]
const hexOf = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')

describe('a chain is refused', () => {
  const RUNS = { numRuns: 400 }
  /** Why each was refused: a run in which little came as far as the signatures proves little. */
  let seen = new Map<unknown, number>()
  beforeEach(() => {
    seen = new Map()
  })
  afterEach(() => {
    expect(seen.get('signature') ?? 0).toBeGreaterThan(50)
  })
  const refused = (blocks: readonly SignedBlock[]) => {
    const why = reason(encodeToken(blocks))
    expect(['signature', 'widening', 'malformed']).toContain(why)
    seen.set(why, (seen.get(why) ?? 0) + 1)
  }

  test('without any one of its blocks, but for the last, without which it is what its signer had', () => {
    fc.assert(
      fc.property(wishes, fc.nat(), (list, pick) => {
        const chain = grow(root(), list)
        const blocks = blocksOf(chain)
        const dropped = pick % blocks.length
        const left = blocks.filter((_, i) => i !== dropped)
        if (dropped < blocks.length - 1) return refused(left)
        const before = chain.tokens.at(-2) as Uint8Array
        expect(hexOf(encodeToken(left))).toBe(hexOf(before))
        expect(verify(before).holder).toBe(chain.keys.at(-2)?.publicKey)
      }),
      RUNS,
    )
  })

  test('with any two of its blocks, payloads or signatures in the place of each other', () => {
    fc.assert(
      fc.property(wishes, fc.nat(), fc.nat(), fc.nat(2), (list, one, another, what) => {
        const blocks = blocksOf(grow(root(), list))
        const i = one % blocks.length
        const j = (i + 1 + (another % (blocks.length - 1))) % blocks.length
        const [a, b] = [blocks[i] as SignedBlock, blocks[j] as SignedBlock]
        blocks[i] = { payload: (what === 2 ? a : b).payload, signature: (what === 1 ? a : b).signature }
        blocks[j] = { payload: (what === 2 ? b : a).payload, signature: (what === 1 ? b : a).signature }
        refused(blocks)
      }),
      RUNS,
    )
  })

  test('with blocks of another good chain in it, with which it has blocks in common or not', () => {
    const pick = fc.tuple(fc.boolean(), fc.nat())
    const picks = fc.oneof(fc.tuple(pick), fc.tuple(pick, pick))
    fc.assert(
      fc.property(wishes, fc.option(wishes, { freq: 1 }), fc.nat(), picks, (first, second, shared, places) => {
        const one = grow(root(), first)
        // At 0 the other has a root of its own. It often says the same, under other ids.
        const common = shared % one.tokens.length
        const from = { tokens: one.tokens.slice(0, common), keys: one.keys.slice(0, common) }
        const two = common === 0 ? grow(root(), second ?? first) : grow(from, second ?? first.slice(common - 1))
        const [mine, theirs] = [blocksOf(one), blocksOf(two)]
        for (const [end, at] of places) {
          // The other's end from there on, or that one block of it.
          const i = at % Math.min(mine.length, theirs.length)
          mine.splice(i, end ? mine.length : 1, ...theirs.slice(i, end ? undefined : i + 1))
        }
        const good = new Set([...one.tokens, ...two.tokens].map(hexOf))
        if (!good.has(hexOf(encodeToken(mine)))) refused(mine)
      }),
      RUNS,
    )
  })
})

describe('verification is total', () => {
  const only = (token: Uint8Array) => {
    try {
      verify(token)
    } catch (error) {
      if (!CloudAppError.is(error)) throw error
    }
  }

  test('on any bytes', () => {
    fc.assert(fc.property(fc.uint8Array({ maxLength: 400 }), only), { numRuns: 5000 })
  })

  test('on things that are no bytes', () => {
    fc.assert(
      fc.property(fc.anything(), (thing) => only(thing as never)),
      { numRuns: 2000 },
    )
  })
})
