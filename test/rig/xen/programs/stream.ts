// A service domain's program: watches the address spaces that a client VM's vCPUs change to, through the broker, until that is
// taken back. node stream.mjs BROKER KEY TOKEN
import { readFileSync } from 'node:fs'
import { CloudAppError, loadKey, type TokenText } from '@cloudapp/sdk'
import { connectBroker } from '@cloudapp/sdk/broker'

const [broker = '', key = '', token = ''] = process.argv.slice(2)
await using connection = await connectBroker({ path: broker, key: await loadKey(key) })
const vm = await connection.redeem<'events.register'>(readFileSync(token, 'utf8').trim() as TokenText)
const stream = await vm.events.subscribe({
  trap: { kind: 'register', register: 'cr3' },
  captures: { to: { field: 'newValue' } },
})
const roots = new Set<bigint>()
let told = false
try {
  for await (const { columns } of stream) {
    for (const to of columns.to) roots.add(to)
    if (roots.size < 2 || told) continue
    told = true
    console.log('seen two address spaces')
  }
  console.log('the stream ended')
} catch (error) {
  console.log(CloudAppError.is(error) ? error.code : String(error))
}
process.exit()
