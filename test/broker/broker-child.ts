import { openBroker } from '../../src/broker/broker.js'
import { loadKey } from '../../src/capabilities/key-files.js'
import { FakeVm } from './fake-vm.js'

// A broker in a process of its own, to be killed. Arguments: key file, register, state folder, socket.
const [key, register, state, socket] = process.argv.slice(2) as [string, string, string, string]
const broker = await openBroker({
  key: await loadKey(key),
  register,
  state,
  audit: { fsync: 'interval' },
  open: async () => new FakeVm(new Uint8Array(1024 * 1024)),
})
await broker.listen({ socket, mode: 0o666 })
process.stdout.write(`${JSON.stringify({ ready: true, pid: process.pid })}\n`)
process.once('SIGTERM', () => broker.close().then(() => process.exit(0)))
