import {
  type BlockContent,
  encodeBlock,
  nextLink,
  ROOT_LINK,
  type SignedBlock,
  signedBytes,
} from '../../src/capabilities/block.js'
import { attenuateToken, type KeyPair, parseToken } from '../../src/capabilities/index.js'
import { encodeToken, type ParsedToken } from '../../src/capabilities/token.js'
import { CloudAppError } from '../../src/errors.js'
import { holders, mint, owner, sd, verify } from './rig.js'

const [, second, third] = holders as [KeyPair, KeyPair, KeyPair]

/** What a fuzz run saw. */
export interface FuzzReport {
  inputs: number
  /** Inputs refused, by code and reason. */
  refused: Map<string, number>
  /** Inputs that are a chain its keys really signed. */
  verified: number
}

/** Numbers that look random and are the same for the same seed (xorshift32). */
export function randomFrom(seed: number): (below: number) => number {
  let state = seed | 0 || 1
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}

/** Good chains of every shape: what is bent starts from them. */
export function corpus(): Uint8Array[] {
  const wide = mint({
    ...{ uses: 10, outputBytes: 1 << 20, bytesPerSecond: 1e6, operationsPerSecond: 1000, pauseMsPerMinute: 100 },
    transports: ['unix', 'vchan'],
    memory: { physical: [{ first: 0n, last: 0xffffn }], kernel: [{ first: 2n ** 63n, last: 2n ** 64n - 1n }] },
    processes: [{ name: 'nginx' }, { name: 'sshd', cgroup: '/system.slice' }],
    syscalls: [0, 1, 59, 322],
  })
  const two = attenuateToken(wide, {
    holder: sd,
    to: second.publicKey,
    uses: 3,
    processes: [{ name: 'nginx', cgroup: '/web' }],
  })
  const three = attenuateToken(two, { holder: second, to: third.publicKey, rights: ['memory.read'], syscalls: [1] })
  const four = attenuateToken(three, { holder: third, to: sd.publicKey, memory: {} })
  return [mint(), wide, two, three, four]
}

/**
 * Decodes and verifies `inputs` bent tokens: bits, bytes and slices changed, chains spliced, and, one time in eight, the
 * bent payloads signed again by the right keys, so that what lies behind the signatures is reached too.
 *
 * @throws Error naming the input, if one makes verification throw anything but a CloudAppError, or passes forged
 */
export function fuzz(inputs: number, seed: number): FuzzReport {
  const random = randomFrom(seed)
  const good = corpus()
  const parsed = good.map(parseToken)
  const blocks = parsed.flatMap(({ signed }) => signed)
  const known = new Set(good.map((token) => Buffer.from(token).toString('latin1')))
  const report: FuzzReport = { inputs, refused: new Map(), verified: 0 }
  for (let i = 0; i < inputs; i++) {
    const base = random(good.length)
    const resigned = random(8) === 0
    const input = resigned
      ? signAgain(parsed[base] as ParsedToken, random)
      : bend(good[base] as Uint8Array, good, blocks, random)
    try {
      verify(input)
      report.verified++
      if (!resigned && !known.has(Buffer.from(input).toString('latin1'))) throw new Error('a forged token was verified')
    } catch (error) {
      if (!CloudAppError.is(error)) {
        throw new Error(`input ${i} of seed ${seed}: ${Buffer.from(input).toString('hex')}`, { cause: error })
      }
      const why = `${error.code} ${error.details?.reason ?? ''}`.trim()
      report.refused.set(why, (report.refused.get(why) ?? 0) + 1)
    }
  }
  return report
}

/** Reasons for refusal a run must have come to, or it tested less than it says. */
export const REASONS = ['malformed', 'widening', 'signature', 'owner', 'vm', 'audience', 'not-yet-valid'] as const

/** What is missing from a run that came to everything; undefined if nothing is. */
export function shortfall({ refused, verified }: FuzzReport): string | undefined {
  if (verified === 0) return 'no input was a good chain'
  const missing = REASONS.filter((reason) => !refused.has(`ERR_CLOUDAPP_TOKEN ${reason}`))
  return missing.length === 0 ? undefined : `nothing was refused as ${missing.join(', ')}`
}

function bend(
  base: Uint8Array,
  good: readonly Uint8Array[],
  blocks: readonly SignedBlock[],
  random: (below: number) => number,
): Uint8Array {
  let bytes = Buffer.from(base)
  for (let rounds = 1 + random(3); rounds > 0; rounds--) {
    const at = random(bytes.length + 1)
    switch (random(8)) {
      case 0:
      case 1:
        if (at < bytes.length) bytes[at] = (bytes[at] as number) ^ (1 << random(8))
        break
      case 2:
        if (at < bytes.length) bytes[at] = random(256)
        break
      case 3:
        bytes = bytes.subarray(0, at)
        break
      case 4:
        bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random(9))])
        break
      case 5:
        bytes = Buffer.concat([bytes.subarray(0, at), randomBytes(random(9), random), bytes.subarray(at)])
        break
      case 6: {
        const other = good[random(good.length)] as Uint8Array
        bytes = Buffer.concat([bytes.subarray(0, at), other.subarray(random(other.length))])
        break
      }
      default:
        bytes = Buffer.from(spliceBlocks(blocks, random))
    }
  }
  return bytes
}

function spliceBlocks(blocks: readonly SignedBlock[], random: (below: number) => number): Uint8Array {
  return encodeToken(Array.from({ length: 1 + random(6) }, () => blocks[random(blocks.length)] as SignedBlock))
}

/** The chain with bent payloads, each signed by the key the block before names (as far as we have it). */
function signAgain({ signed, blocks }: ParsedToken, random: (below: number) => number): Uint8Array {
  const bent = random(blocks.length)
  const keys = [owner, sd, second, third]
  let link: Uint8Array = ROOT_LINK
  const out = signed.map((good, i) => {
    // What stands before the bent block is as it was, and signing it again would give the same bytes.
    let block = good
    if (i >= bent) {
      const plain = i === bent ? bendPayload(Buffer.from(good.payload), random) : encodeBlock(blocks[i] as BlockContent)
      block = { payload: plain, signature: (keys[i] ?? owner).sign(signedBytes(link, plain)) }
    }
    link = nextLink(link, block)
    return block
  })
  return encodeToken(out)
}

function bendPayload(payload: Buffer, random: (below: number) => number): Uint8Array {
  for (let rounds = 1 + random(2); rounds > 0; rounds--) {
    const at = random(payload.length)
    const kind = random(4)
    if (kind < 2) payload[at] = (payload[at] as number) ^ (1 << random(8))
    else if (kind === 2) payload[at] = random(256)
    else return Buffer.concat([payload.subarray(0, at), randomBytes(random(4), random), payload.subarray(at)])
  }
  return payload
}

function randomBytes(length: number, random: (below: number) => number): Buffer {
  return Buffer.from(Array.from({ length }, () => random(256)))
}
