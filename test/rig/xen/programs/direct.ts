// In a service domain: opens a client that Xen itself gives, looks, and says what it saw, line by line as JSON.
import { readFileSync } from 'node:fs'
import { CloudAppError } from '@cloudapp/sdk'
import { Linux, openXenDirect } from '@cloudapp/sdk/vmi'

const [options = '', mode = 'look'] = process.argv.slice(2)
const say = (document: object): void => void process.stdout.write(`${JSON.stringify(document)}\n`)
const told = (error: unknown) => (CloudAppError.is(error) ? error.code : String(error))
/** Mappings of other domains this process has. */
const mapped = (): number =>
  readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .filter((line) => line.includes('privcmd')).length

try {
  const vm = await openXenDirect(JSON.parse(options))
  const [row] = await vm.memory.read([{ space: 0n, at: 0x100_0000n, length: 8 }])
  const first = Buffer.from(row?.bytes ?? []).toString('hex')
  const registers = await vm.vcpus?.registers().then((vcpus) => vcpus.length, told)
  say({
    opened: true,
    first,
    mapped: mapped(),
    writes: vm.memory.write !== undefined,
    registers,
    pauses: vm.pause !== undefined,
  })
  if (mode === 'attach') {
    const linux = await Linux.attach(vm)
    const tasks = await linux.tasks()
    say({ release: linux.release, tasks: tasks.map(({ pid, comm }) => `${pid} ${comm}`) })
  }
  if (mode === 'hold') {
    const alive = setInterval(() => {}, 1000)
    await new Promise<void>((resolve) => vm.closed.addEventListener('abort', () => resolve(), { once: true }))
    await vm.close()
    const read = await vm.memory.read([{ space: 0n, at: 0x100_0000n, length: 8 }]).then(() => 'read', told)
    say({ ended: told(vm.closed.reason), mapped: mapped(), read })
    clearInterval(alive)
  }
  await vm.close()
} catch (error) {
  say({ opened: false, error: told(error), message: error instanceof Error ? error.message : String(error) })
}
