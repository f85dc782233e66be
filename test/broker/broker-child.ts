import { createInterface } from 'node:readline'
import { openBroker } from '../../src/broker/broker.js'
import { loadKey } from '../../src/capabilities/key-files.js'
import { FakeVm } from './fake-vm.js'

// A broker in a process of its own, to be killed. Arguments: key file, register, state folder, socket. It is ready to start
// long before it is needed, and starts when it is told how the audit log is to be kept.
const [keyFile, register, state, socket] = process.argv.slice(2) as [string, string, string, string]
const key = await loadKey(keyFile)
for await (const fsync of createInterface({ input: process.stdin })) {
  const broker = await openBroker({
    ...{ key, register, state },
    audit: { fsync: fsync === 'always' ? 'always' : 'interval', segmentBytes: 256 * 1024 },
    open: async () => new FakeVm(new Uint8Array(1024 * 1024)),
  })
  await broker.listen({ socket, mode: 0o666 })
  process.stdout.write(`${JSON.stringify({ ready: true, pid: process.pid })}\n`)
  process.once('SIGTERM', () => broker.close().then(() => process.exit(0)))
}
