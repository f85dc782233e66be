import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Linux, LocalMemory, openVm, PageFlags, PHYSICAL } from '@cloudapp/sdk/vmi'
import { type Measurement, median, time, times } from './measure.js'
import { Plain } from './plain.js'

const BATCH = 256
const READS = 400 * BATCH

/** Kernel addresses spread evenly over everything the kernel has mapped writable: its image, the direct map, vmalloc. */
async function randomAddresses(linux: Linux): Promise<BigUint64Array> {
  const pages = await linux.memory.pages({
    space: linux.space,
    start: 0xff00_0000_0000_0000n,
    end: 1n << 64n,
    want: PageFlags.Write,
    limit: 262_144,
  })
  // The direct map alone is larger than everything else together; fixed mappings of devices lie outside RAM.
  const runs = Array.from(pages.virtual, (at, i) => ({
    at,
    pa: pages.physical[i] as bigint,
    size: pages.sizes[i] as bigint,
  }))
    .filter(({ pa, size }) => pa + size <= linux.memory.end)
    .map(({ at, size }) => ({ at, words: Number(size / 8n) }))
  const total = runs.reduce((sum, run) => sum + run.words, 0)
  const addresses = new BigUint64Array(READS)
  let seed = 0x2545_f491
  const random = () => {
    // xorshift32: the same addresses in every run.
    seed ^= seed << 13
    seed ^= seed >>> 17
    seed ^= seed << 5
    return (seed >>> 0) / 2 ** 32
  }
  for (let i = 0; i < READS; i++) {
    let word = Math.floor(random() * total)
    const run = runs.find((candidate) => {
      if (word < candidate.words) return true
      word -= candidate.words
      return false
    })
    addresses[i] = (run?.at ?? 0n) + BigInt(word) * 8n
  }
  return addresses
}

export async function benchVmi(ram: string, progress: (message: string) => void): Promise<Measurement[]> {
  const cache = mkdtempSync(path.join(tmpdir(), 'cloudapp-bench-'))
  process.env.CLOUDAPP_CACHE = cache
  try {
    using plain = new Plain(ram)
    return [
      ...(await attach(ram, cache, progress)),
      ...(await randomReads(ram, cache, plain, progress)),
      ...(await taskLists(ram, progress)),
      ...(await bulk(ram, plain, progress)),
    ]
  } finally {
    rmSync(cache, { recursive: true, force: true })
  }
}

async function attachOnce(ram: string): Promise<void> {
  await using vm = await openVm(`raw:${ram}`)
  const linux = await Linux.attach(vm)
  if (linux.release === '') throw new Error('no kernel')
}

async function attach(ram: string, cache: string, progress: (message: string) => void): Promise<Measurement[]> {
  progress('attaching with no configuration')
  const cold: number[] = []
  for (let i = 0; i < 5; i++) {
    rmSync(cache, { recursive: true, force: true })
    cold.push(await time(() => attachOnce(ram)))
  }
  const cached = await times(20, 2, () => attachOnce(ram))
  return [
    {
      name: 'vmi.attach.cold',
      value: median(cold),
      unit: 'ms',
      note: 'open, find and parse the kernel, nothing cached; median of 5',
    },
    {
      name: 'vmi.attach.cached',
      value: median(cached),
      unit: 'ms',
      note: 'open and attach, profile cached by BUILD-ID; median of 20',
    },
  ]
}

async function randomReads(
  ram: string,
  cache: string,
  plain: Plain,
  progress: (message: string) => void,
): Promise<Measurement[]> {
  progress('reading 8 bytes at random kernel addresses')
  await using vm = await openVm(`raw:${ram}`)
  const linux = await Linux.attach(vm)
  const addresses = await randomAddresses(linux)
  const file = path.join(cache, 'addresses')
  writeFileSync(file, addresses)
  const { root, levels } = linux.profile.boot
  const [inC = 0n, sumInC = 0n] = await plain.ask(`walk ${root.toString(16)} ${levels} ${READS} ${file}`)
  const pass = async (take: (bytes: Uint8Array) => void) => {
    for (let i = 0; i < READS; i += BATCH) {
      const [result] = await linux.memory.read([
        { space: linux.space, at: addresses.subarray(i, i + BATCH), length: 8 },
      ])
      if (result === undefined || result.faults.length > 0) throw new Error('an address could not be read')
      take(result.bytes)
    }
  }
  // Both must have read the same: one pass is summed up.
  let sum = 0n
  await pass((bytes) => {
    for (const word of new BigUint64Array(bytes.buffer, bytes.byteOffset, BATCH)) sum += word
  })
  if (BigInt.asUintN(64, sum) !== sumInC) throw new Error('the C program read something else')
  let used = 0
  const passes = await times(7, 2, () =>
    pass((bytes) => {
      used ^= bytes[0] as number
    }),
  )
  const each = (median(passes) * 1e6) / READS
  if (!Number.isInteger(used)) throw new Error('nothing was read')
  return [
    {
      name: 'vmi.random-read-8.batch256',
      value: each,
      unit: 'ns',
      note: `a read, in batches of 256; a bare C walk over the same addresses: ${Number(inC)} ns`,
    },
  ]
}

async function taskLists(ram: string, progress: (message: string) => void): Promise<Measurement[]> {
  progress('listing tasks')
  await using vm = await openVm(`raw:${ram}`)
  const linux = await Linux.attach(vm)
  const { memory } = linux
  if (!(memory instanceof LocalMemory)) throw new Error('raw: gives a local memory')
  const count = (await linux.tasks()).length
  // So many before them: the compiler of JavaScript takes thousands of calls to know what is hot, and till then it differs by run.
  const warm = await times(300, 3000, () => linux.tasks())
  const cold: number[] = []
  for (let i = 0; i < 100; i++) {
    memory.invalidate()
    cold.push(await time(() => linux.tasks()))
  }
  const note = (kind: string) => `${count} tasks with pid, tgid, ppid, comm, uid, dtb; ${kind}`
  return [
    { name: 'vmi.tasks.warm', value: median(warm) * 1000, unit: 'us', note: note('median of 300, after 3,000') },
    {
      name: 'vmi.tasks.cold',
      value: median(cold) * 1000,
      unit: 'us',
      note: note('translations dropped before each; median of 100'),
    },
  ]
}

async function bulk(ram: string, plain: Plain, progress: (message: string) => void): Promise<Measurement[]> {
  progress('copying memory out in bulk')
  await using vm = await openVm(`raw:${ram}`)
  const { memory } = vm
  const chunk = 8 << 20
  const into = new Uint8Array(chunk)
  const total = 256 << 20
  const ratios: number[] = []
  let rate = 0
  for (let round = 0; round < 9; round++) {
    const [inC = 0n] = await plain.ask(`copy ${chunk} ${total}`)
    const [took = 0] = await times(1, round === 0 ? 1 : 0, async () => {
      for (let at = 0; at < total; at += chunk) {
        await memory.readInto(into, [{ space: PHYSICAL, at: BigInt(at), length: chunk }])
      }
    })
    rate = total / (took / 1000)
    ratios.push(rate / Number(inC))
  }
  return [
    {
      name: 'vmi.bulk-copy.ratio-to-memcpy',
      value: median(ratios),
      unit: 'ratio',
      note: `256 MiB in reads of 8 MiB into one buffer, ${(rate / 1e9).toFixed(1)} GB/s; memcpy in C of the same bytes in the same run; median of 9`,
    },
  ]
}
