// The benchmark of LibVMI: each line the same work on a VM by the TypeScript API and by bench-libvmi.c on LibVMI, turn about
// in one run. Prints one JSON document: name, and both times.
//
//   node bench-libvmi.mjs URI TARGET MIB LIBRARY PROGRAM [FOLDER OF WHAT LIBRARY NEEDS]
//
// URI is the VM as openVm takes it, TARGET the same VM as the program takes it, MIB its RAM.
import { rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Linux, LocalMemory, openVm } from '@cloudapp/sdk/vmi'
import { type Beside, compare, Plain, words } from './lib/beside.js'
import { pagesOf } from './lib/pages.js'

const [uri = '', target = '', mib = '', library = '', program = '', needed] = process.argv.slice(2)
// Of the last 2 MiB a domain gives pages away.
const RAM = (BigInt(mib) - 2n) << 20n
/** Of emulated Xen, LibVMI takes up to a millisecond for a read and 100 ms for a MiB. */
const ROUNDS = { attach: 3, cold: 60, warm: 100, read: 3, bulk: 3 }
/** Lists in a round: whoever scans often meets no other process between two, and the emulation takes a millisecond to switch. */
const LISTS = { cold: 1, warm: 16 }
const READS = 4096
const BATCH = 256
const CHUNK = 1 << 20
/** What is copied in bulk. */
const BULK = 64 << 20

const env = needed === undefined ? process.env : { ...process.env, LD_LIBRARY_PATH: needed }
using plain = new Plain(program, [library, target], env)

const results: Beside[] = []
const attach = async () => {
  await using vm = await openVm(uri)
  await Linux.attach(vm)
  return 0n
}
results.push(
  await compare({ name: 'attach', units: 1, rounds: ROUNDS.attach, c: () => plain.ask('attach'), ours: attach }),
)

await using vm = await openVm(uri)
// Nothing changes meanwhile: both must read the same.
await using _paused = await vm.pause?.()
const { memory } = vm
if (!(memory instanceof LocalMemory)) throw new Error(`${uri} is not opened here`)
const linux = await Linux.attach(vm)
const { profile } = linux
if (profile.boot.levels !== 4) throw new Error('LibVMI reads no guest with five levels of page tables')
const root = profile.boot.root.toString(16)

const node = profile.offset('task_struct.tasks')
const layout = [
  profile.boot.root,
  profile.symbol('init_task') + BigInt(node),
  node,
  profile.offset('task_struct.pid'),
  profile.offset('task_struct.tgid'),
  profile.offset('task_struct.flags'),
  profile.offset('task_struct.comm'),
  profile.offset('task_struct.real_parent'),
  profile.offset('task_struct.cred'),
  profile.offset('task_struct.mm'),
  profile.offset('task_struct.signal'),
  profile.offset('cred.uid'),
  profile.offset('mm_struct.pgd'),
].map((value) => value.toString(16))

const list = async () => {
  const tasks = await linux.tasks()
  let sum = 1_000_003 * tasks.length
  for (const { pid, tgid, ppid, uid, comm, dtb } of tasks) {
    sum += pid + 3 * tgid + 5 * ppid + 7 * uid + 11 * (comm.charCodeAt(0) || 0) + (dtb === 0n ? 0 : 1)
  }
  return sum
}
const lists = async (count: number) => {
  let sum = 0
  for (let i = 0; i < count; i++) sum += await list()
  return BigInt(sum)
}
for (const kind of ['cold', 'warm'] as const) {
  results.push(
    await compare({
      name: `tasks-${kind}`,
      units: LISTS[kind],
      rounds: ROUNDS[kind],
      c: () => plain.ask(`tasks ${kind} ${LISTS[kind]} ${layout.join(' ')}`),
      ...(kind === 'cold' ? { before: () => memory.invalidate() } : {}),
      ours: () => lists(LISTS[kind]),
    }),
  )
}

const addresses = await pagesOf(linux, READS, RAM)
const file = path.join(tmpdir(), `bench-libvmi-${process.pid}`)
writeFileSync(file, addresses)
results.push(
  await compare({
    name: 'random-reads',
    units: READS,
    rounds: ROUNDS.read,
    c: () => plain.ask(`read ${root} ${file}`),
    ours: async () => {
      let sum = 0n
      for (let i = 0; i < READS; i += BATCH) {
        const request = { space: linux.space, at: addresses.subarray(i, i + BATCH), length: 8 }
        const [result] = await memory.read([request])
        if (result === undefined || result.faults.length > 0) throw new Error('an address could not be read')
        sum += words(new Uint32Array(result.bytes.buffer, result.bytes.byteOffset, 2 * BATCH), BATCH, 1)
      }
      return sum
    },
  }),
)
rmSync(file)

const end = Math.min(Number(RAM), BULK)
const into = new Uint8Array(CHUNK)
const halves = new Uint32Array(into.buffer)
results.push(
  await compare({
    name: 'bulk',
    units: end,
    rounds: ROUNDS.bulk,
    c: () => plain.ask(`bulk ${end.toString(16)} ${CHUNK.toString(16)}`),
    ours: async () => {
      let sum = 0n
      for (let at = 0; at < end; at += CHUNK) {
        const [result] = await memory.readInto(into, [{ space: 0n, at: BigInt(at), length: CHUNK }])
        if (result === undefined || result.faults.length > 0) throw new Error('memory could not be copied')
        sum += words(halves, CHUNK / 4096, 512)
      }
      return sum
    },
  }),
)
console.log(JSON.stringify(results))
