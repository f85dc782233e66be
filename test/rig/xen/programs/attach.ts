// Opens a domain with no configuration and says what it sees, as one JSON document.
import { integrity, Linux, openVm } from '@cloudapp/sdk/vmi'

const [uri = ''] = process.argv.slice(2)
const started = performance.now()
await using vm = await openVm(uri)
const opened = performance.now()
const linux = await Linux.attach(vm)
const attached = performance.now()
const tasks = await linux.tasks()
const listed = performance.now()
const modules = await linux.modules()
const report = await integrity(linux, vm.vcpus === undefined ? {} : { vcpus: vm.vcpus })
const vcpus = await vm.vcpus?.registers()
const times = {
  open: opened - started,
  attach: attached - opened,
  tasks: listed - attached,
  integrity: performance.now() - listed,
}
const { identity } = vm
const plain = (_: string, value: unknown) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value)
const { release, cpus } = linux
const { levels } = linux.profile.boot
console.log(JSON.stringify({ identity, release, cpus, levels, tasks, modules, report, vcpus, times }, plain))
