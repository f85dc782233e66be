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
/** Rounds that count; those before are for the compiler of JavaScript, which takes thousands of calls to know what is hot. */
const ROUNDS = 10
const RUN = 2n << 20n
const BATCH = 256

interface Ratio {
  readonly name: string
  /** Nanoseconds of one unit of work, the best of all rounds. */
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

/** Turn about, so that what else the host does meets both; the best of each, and the same sums. */
async function compare(
  name: string,
  units: number,
  warm: number,
  c: () => Promise<{ ns: number; sum: bigint }>,
  ours: () => Promise<bigint>,
) {
  const best = { c: Infinity, ours: Infinity }
  for (let round = 0; round < warm + ROUNDS; round++) {
    const theirs = await c()
    const began = process.hrtime.bigint()
    const sum = await ours()
    const took = Number(process.hrtime.bigint() - began)
    if (round < warm) continue
    if (BigInt.asUintN(64, sum) !== theirs.sum) throw new Error(`${name}: the C program read something else`)
    best.c = Math.min(best.c, theirs.ns)
    best.ours = Math.min(best.ours, took)
  }
  return { name, c: best.c / units, ours: best.ours / units } satisfies Ratio
}

/** Of each `step`th u64, by halves: bigints would cost more than the reading. Exact up to two million of them. */
const words = (bytes: Uint8Array, step: number): bigint => {
  const view = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4)
  let low = 0
  let high = 0
  for (let i = 0; i < view.length; i += 2 * step) {
    low += view[i] as number
    high += view[i + 1] as number
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
    2,
    () => plain.ask(`map ${(whole * RUN).toString(16)}`),
    async () => {
      const [result] = await narrow.memory.read([{ space: 0n, at: starts, length: 8 }])
      if (result === undefined || result.faults.length > 0) throw new Error('a run is not there')
      return words(result.bytes, 1)
    },
  ),
)

const linux = await Linux.attach(wide)
const { root, levels } = linux.profile.boot
const addresses = await pagesOf(linux, 64 * BATCH)
const file = '/tmp/bench-addresses'
writeFileSync(file, addresses)
await plain.ask(`hold ${RAM.toString(16)}`)
// As the C program has one.
const buffer = new Uint8Array(BATCH * 4096)
for (const length of [8, 4096]) {
  results.push(
    await compare(
      `xen.read-batch256.${length}`,
      addresses.length,
      100,
      () => plain.ask(`read ${root.toString(16)} ${levels} ${length} ${file}`),
      async () => {
        let sum = 0n
        for (let i = 0; i < addresses.length; i += BATCH) {
          const at = addresses.subarray(i, i + BATCH)
          const [result] = wide.memory.sync.readInto(buffer, [{ space: linux.space, at, length }])
          if (result === undefined || result.faults.length > 0) throw new Error('an address could not be read')
          sum += words(result.bytes, length / 8)
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
