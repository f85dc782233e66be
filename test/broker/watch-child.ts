import { connectBroker } from '../../src/broker/client.js'
import { KeyPair } from '../../src/capabilities/keys.js'

// A holder that has breakpoints in the VM and stays. Arguments: socket, private key in PEM, token, address space, addresses.
const [path, pem, token, space, ...addresses] = process.argv.slice(2) as [string, string, `cloudapp1.${string}`, string]
const connection = await connectBroker({ path, key: KeyPair.fromPem(pem) })
const vm = await connection.redeem<'events.memory'>(token)
for (const at of addresses as string[]) {
  await vm.events.subscribe({ trap: { kind: 'breakpoint', at: BigInt(at), space: BigInt(space) } })
}
process.stdout.write(`${JSON.stringify({ watching: true })}\n`)
