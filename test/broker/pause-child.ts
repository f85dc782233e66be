import { connectBroker } from '../../src/broker/client.js'
import { KeyPair } from '../../src/capabilities/keys.js'

// A holder that pauses the VM and stays. Arguments: socket, private key in PEM, token.
const [path, pem, token] = process.argv.slice(2) as [string, string, `cloudapp1.${string}`]
const connection = await connectBroker({ path, key: KeyPair.fromPem(pem) })
const vm = await connection.redeem<'vm.pause'>(token)
await vm.pause()
process.stdout.write(`${JSON.stringify({ paused: true })}\n`)
