// The benchmark of the xen: source, in dom0: each line the same work by the TypeScript API and by bench.c, turn about in
// one run. Prints one JSON document: name, how much faster (1: as fast), and both times.
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { Linux, openXen, PageFlags } from '@cloudapp/sdk/vmi'

const [which = '', mib = ''] = process.argv.slice(2)
// Above its RAM a domain has pages here and there, up to 4 GiB.
const RAM = BigInt(mib) << 20n
/** Rounds that count; as many before are for the compiler of JavaScript, which takes thousands of calls to know what is hot. */
const ROUNDS = { map: 15, read: 100 }
const RUN = 2n << 20n
const BATCH = 256

interface Ratio {
  readonly name: string
  /** Nanoseconds of one unit of work, the median of all rounds. */
  readonly ours: number
  readonly c: number
}

/** The C program, which holds nothing of what is measured here. */
class Plain {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #lines: AsyncIterator<string>

  constructor(domid: string) {
    this.#child = spawn(path.join(import.meta.dirname, 'bench'), [domid], {
      stdio: ['pipe', 'pipe', 'inherit'],
    }) as never
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()
  }

  async ask(order: string): Promise<{ ns: number; sum: bigint }> {
    this.#child.stdin.write(`${order}\n`)
    const { value, done } = await this.#lines.next()
    if (done) throw new Error(`the C program ended at: ${order}`)
    const [ns = '', sum = ''] = String(value).split(' ')
    return { ns: Number(ns), sum: BigInt(sum) }
  }

  end(): void {
    this.#child.stdin.end()
  }
}

const median = (values: readonly number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1] as number

/** Turn about, so that what else the host does meets both; the median of each, and the same sums. */
async function compare(
  name: string,
  units: number,
  rounds: number,
  c: () => Promise<{ ns: number; sum: bigint }>,
  ours: () => Promise<bigint>,
) {
  const all: { readonly c: number[]; readonly ours: number[] } = { c: [], ours: [] }
  for (let round = 0; round < 2 * rounds; round++) {
    const theirs = await c()
    const began = process.hrtime.bigint()
    const sum = await ours()
    const took = Number(process.hrtime.bigint() - began)
    if (round < rounds) continue
    if (BigInt.asUintN(64, sum) !== theirs.sum) throw new Error(`${name}: the C program read something else`)
    all.c.push(theirs.ns)
    all.ours.push(took)
  }
  return { name, c: median(all.c) / units, ours: median(all.ours) / units } satisfies Ratio
}

/**
 * The sum of `count` u64, `step` u64 apart, modulo 2^64. By halves and in integers: bigints would cost more than the
 * reading, and so would floating point, which the emulation does in software.
 */
const words = (halves: Uint32Array, count: number, step: number): bigint => {
  let low = 0
  let high = 0
  for (let k = 0, i = 0; k < count; k++, i += 2 * step) {
    const word = halves[i] as number
    low = (low + word) >>> 0
    high = (high + (halves[i + 1] as number) + (low < word ? 1 : 0)) >>> 0
  }
  return BigInt(low) + (BigInt(high) << 32n)
}

await using narrow = await openXen(which, { mapped: Number(RUN) })
await using wide = await openXen(which, { mapped: Number(RAM + RUN) })
// Nothing changes meanwhile: both must read the same.
await using _paused = await wide.pause?.()
const { stdout } = await new Promise<{ stdout: string }>((resolve, reject) => {
  const child = spawn('xl', ['domid', which])
  let stdout = ''
  child.stdout.on('data', (text) => {
    stdout += text
  })
  child.once('error', reject)
  child.once('close', () => resolve({ stdout }))
})
const plain = new Plain(stdout.trim())
const results: Ratio[] = []

const whole = RAM / RUN - 1n
const starts = BigUint64Array.from({ length: Number(whole) }, (_, i) => BigInt(i) * RUN)
results.push(
  await compare(
    'xen.map',
    Number(whole) * 512,
    ROUNDS.map,
    () => plain.ask(`map ${(whole * RUN).toString(16)}`),
    async () => {
      const [result] = await narrow.memory.read([{ space: 0n, at: starts, length: 8 }])
      if (result === undefined || result.faults.length > 0) throw new Error('a run is not there')
      const { buffer, byteOffset } = result.bytes
      return words(new Uint32Array(buffer, byteOffset, 2 * starts.length), starts.length, 1)
    },
  ),
)

const linux = await Linux.attach(wide)
const { root, levels } = linux.profile.boot
const addresses = await pagesOf(linux, 64 * BATCH)
const file = '/tmp/bench-addresses'
writeFileSync(file, addresses)
await plain.ask(`hold ${RAM.toString(16)}`)
// As the C program has one buffer, and makes nothing anew for a batch.
const buffer = new Uint8Array(BATCH * 4096)
const halves = new Uint32Array(buffer.buffer)
const batches = Array.from({ length: addresses.length / BATCH }, (_, i) =>
  addresses.subarray(i * BATCH, (i + 1) * BATCH),
)
for (const length of [8, 4096]) {
  results.push(
    await compare(
      `xen.read-batch256.${length}`,
      addresses.length,
      ROUNDS.read,
      () => plain.ask(`read ${root.toString(16)} ${levels} ${length} ${file}`),
      async () => {
        let sum = 0n
        for (const at of batches) {
          // By its index: taking an array apart goes through an iterator, which here is a tenth of it all.
          const result = wide.memory.sync.readInto(buffer, [{ space: linux.space, at, length }])[0]
          if (result === undefined || result.faults.length > 0) throw new Error('an address could not be read')
          sum += words(halves, BATCH, length >> 3)
        }
        return sum
      },
    ),
  )
}
rmSync(file)
plain.end()
console.log(JSON.stringify(results))

/** Starts of pages the kernel has mapped writable in its direct map and image, far apart from one to the next. */
async function pagesOf({ memory, space }: Linux, count: number): Promise<BigUint64Array> {
  const found = await memory.pages({
    space,
    start: 0xff00_0000_0000_0000n,
    end: 1n << 64n,
    want: PageFlags.Write,
    limit: 65_536,
  })
  const all: bigint[] = []
  found.virtual.forEach((at, i) => {
    const pa = found.physical[i] as bigint
    const size = found.sizes[i] as bigint
    // Fixed mappings of devices lie outside of RAM, and so does what is left of the last 2 MiB.
    if (pa + size > whole * RUN) return
    for (let offset = 0n; offset < size; offset += 4096n) all.push(at + offset)
  })
  return BigUint64Array.from({ length: count }, (_, i) => all[(i * 7919) % all.length] as bigint)
}
