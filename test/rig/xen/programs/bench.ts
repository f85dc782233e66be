// The benchmark of the xen: source, in dom0: each line the same work by the TypeScript API and by bench.c, turn about in
// one run. Prints one JSON document: name, how much faster (1: as fast), and both times.
import { spawn } from 'node:child_process'
import { rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Linux, openXen } from '@cloudapp/sdk/vmi'
import { type Beside, compare, Plain, words } from './lib/beside.js'
import { pagesOf } from './lib/pages.js'

const [which = '', mib = ''] = process.argv.slice(2)
// Above its RAM a domain has pages here and there, up to 4 GiB.
const RAM = BigInt(mib) << 20n
const ROUNDS = { map: 15, read: 100 }
const RUN = 2n << 20n
const BATCH = 256

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
using plain = new Plain(path.join(import.meta.dirname, 'bench'), [stdout.trim()])
const results: Beside[] = []

const whole = RAM / RUN - 1n
const starts = BigUint64Array.from({ length: Number(whole) }, (_, i) => BigInt(i) * RUN)
results.push(
  await compare({
    name: 'xen.map',
    units: Number(whole) * 512,
    rounds: ROUNDS.map,
    c: () => plain.ask(`map ${(whole * RUN).toString(16)}`),
    ours: async () => {
      const [result] = await narrow.memory.read([{ space: 0n, at: starts, length: 8 }])
      if (result === undefined || result.faults.length > 0) throw new Error('a run is not there')
      const { buffer, byteOffset } = result.bytes
      return words(new Uint32Array(buffer, byteOffset, 2 * starts.length), starts.length, 1)
    },
  }),
)

const linux = await Linux.attach(wide)
const { root, levels } = linux.profile.boot
const addresses = await pagesOf(linux, 64 * BATCH, whole * RUN)
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
    await compare({
      name: `xen.read-batch256.${length}`,
      units: addresses.length,
      rounds: ROUNDS.read,
      c: () => plain.ask(`read ${root.toString(16)} ${levels} ${length} ${file}`),
      ours: async () => {
        let sum = 0n
        for (const at of batches) {
          // By its index: taking an array apart goes through an iterator, which here is a tenth of it all.
          const result = wide.memory.sync.readInto(buffer, [{ space: linux.space, at, length }])[0]
          if (result === undefined || result.faults.length > 0) throw new Error('an address could not be read')
          sum += words(halves, BATCH, length >> 3)
        }
        return sum
      },
    }),
  )
}
rmSync(file)
console.log(JSON.stringify(results))
