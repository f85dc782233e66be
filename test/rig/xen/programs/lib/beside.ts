import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { median } from '../../../../../bench/measure.js'

/** The same work by the library and by a program in C. */
export interface Beside {
  readonly name: string
  /** Nanoseconds of one unit of work, the median of all rounds. */
  readonly ours: number
  readonly c: number
}

/** What the program in C did: how long it took, and what it read, summed up. */
interface Answer {
  readonly ns: number
  readonly sum: bigint
}

/** A program in C that takes an order a line, and answers each by one line of two numbers: nanoseconds and a sum. */
export class Plain implements Disposable {
  readonly #child: ChildProcessByStdio<Writable, Readable, null>
  readonly #lines: AsyncIterator<string>

  constructor(program: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.#child = spawn(program, args, { stdio: ['pipe', 'pipe', 'inherit'], env })
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()
  }

  async ask(order: string): Promise<Answer> {
    this.#child.stdin.write(`${order}\n`)
    const { value, done } = await this.#lines.next()
    if (done) throw new Error(`the C program ended at: ${order}`)
    const [ns = '', sum = ''] = String(value).split(' ')
    return { ns: Number(ns), sum: BigInt(sum) }
  }

  [Symbol.dispose](): void {
    this.#child.stdin.end()
  }
}

export interface Work {
  readonly name: string
  /** Units of work in a round. */
  readonly units: number
  /** Rounds that count; as many before are for the compiler of JavaScript, which takes thousands of calls to know what is hot. */
  readonly rounds: number
  c(): Promise<Answer>
  /** What is not measured, before each round of ours. */
  before?(): unknown
  ours(): Promise<bigint>
}

/** Turn about, so that what else the host does meets both; the median of each, and the same sums. */
export async function compare({ name, units, rounds, c, before, ours }: Work): Promise<Beside> {
  const all: { readonly c: number[]; readonly ours: number[] } = { c: [], ours: [] }
  for (let round = 0; round < 2 * rounds; round++) {
    const theirs = await c()
    await before?.()
    const began = process.hrtime.bigint()
    const sum = await ours()
    const took = Number(process.hrtime.bigint() - began)
    if (round < rounds) continue
    if (BigInt.asUintN(64, sum) !== theirs.sum) throw new Error(`${name}: the C program read something else`)
    all.c.push(theirs.ns)
    all.ours.push(took)
  }
  return { name, c: median(all.c) / units, ours: median(all.ours) / units }
}

/**
 * The sum of `count` u64, `step` u64 apart, modulo 2^64. By halves and in integers: bigints would cost more than the
 * reading, and so would floating point, which the emulation does in software.
 */
export function words(halves: Uint32Array, count: number, step: number): bigint {
  let low = 0
  let high = 0
  for (let k = 0, i = 0; k < count; k++, i += 2 * step) {
    const word = halves[i] as number
    low = (low + word) >>> 0
    high = (high + (halves[i + 1] as number) + (low < word ? 1 : 0)) >>> 0
  }
  return BigInt(low) + (BigInt(high) << 32n)
}
