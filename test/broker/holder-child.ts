import { connectBroker } from '../../src/broker/client.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { CloudAppError } from '../../src/errors.js'

// A holder in a process (and user) of its own. Arguments: socket, private key in PEM, token.
const [path, pem, token] = process.argv.slice(2) as [string, string, `cloudapp1.${string}`]
const say = (what: object) => process.stdout.write(`${JSON.stringify(what)}\n`)
const key = KeyPair.fromPem(pem)
try {
  const connection = await connectBroker({ path, key })
  const vm = await connection.redeem<'memory.read'>(token)
  const [result] = await vm.memory.read([{ space: 0n, at: 0x1000n, length: 4 }])
  say({ uid: process.getuid?.(), pid: process.pid, bytes: Buffer.from(result?.bytes ?? []).toString('hex') })
  await connection.close()
} catch (error) {
  say({ uid: process.getuid?.(), pid: process.pid, code: CloudAppError.is(error) ? error.code : String(error) })
}
