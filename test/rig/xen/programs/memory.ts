// Reads a domain's memory in several ways and says what came of it, as one JSON document.
import { CloudAppError } from '@cloudapp/sdk'
import { openXen } from '@cloudapp/sdk/vmi'

const [which = '', pattern = ''] = process.argv.slice(2)
const PAGE = 4096n
const MiB = 2 ** 20
const hex = (bytes: Uint8Array | undefined) => Buffer.from(bytes ?? []).toString('hex')

await using wide = await openXen(which)
await using narrow = await openXen(which, { mapped: 2 * MiB })
const { end } = wide.memory
await using _pause = await wide.pause?.()

// With room for one mapping, each access to another 2 MiB takes the one before away.
const far = BigUint64Array.from({ length: 64 }, (_, i) => BigInt(8 + ((i * 37) % 64) * 2) * BigInt(MiB))
const read = async (vm: typeof wide) => hex((await vm.memory.read([{ space: 0n, at: far, length: 64 }]))[0]?.bytes)
const eviction = (await read(wide)) === (await read(narrow))

const found = await wide.memory.search({
  space: 0n,
  patterns: [Buffer.from(pattern, 'hex')],
  start: 0n,
  end,
  limit: 64,
})
const digests: string[] = []
for (const { at } of found.matches) {
  const start = at & ~(PAGE - 1n)
  for (const vm of [wide, narrow]) {
    digests.push(hex((await vm.memory.digest({ space: 0n, start, end: start + PAGE })).digests))
  }
}
const outside = BigUint64Array.of(0x8000_0000n, end, 0xf_ffff_f000n)
const [hole] = await wide.memory.read([{ space: 0n, at: outside, length: 8 }])

await using other = await openXen(which)
const before = hex((await other.memory.read([{ space: 0n, at: far.slice(0, 1), length: 8 }]))[0]?.bytes)
other.memory.revoke()
const after = await other.memory.read([{ space: 0n, at: far.slice(0, 1), length: 8 }]).then(
  () => 'read',
  (error: unknown) => (CloudAppError.is(error) ? error.code : String(error)),
)
const faults = hole?.faults.map(({ reason }) => reason)
console.log(JSON.stringify({ eviction, digests, faults, before: before.length, after, consistent: found.consistent }))
