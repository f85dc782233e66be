// A broker whose VM is started anew under it. A line for what becomes of each attempt to read the VM; goes on when the file
// named comes.
//   node restarted.mjs UUID DOMID FILE
import { existsSync, mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError, changeOwners, KeyPair, mintToken, newBootNonce } from '@cloudapp/sdk'
import { connectBroker, openBroker } from '@cloudapp/sdk/broker'

const [uuid = '', domid = '', file = ''] = process.argv.slice(2)
const folder = mkdtempSync(join(tmpdir(), 'restarted-'))
const [key, owner, holder] = [KeyPair.generate(), KeyPair.generate(), KeyPair.generate()]
const register = join(folder, 'owners.json')
/** In the register at the number that the VM has now: one that was destroyed, and whose number was given out again. */
const gone = '99999999-9999-4999-8999-999999999999'

const vms = new Map([
  [uuid, { name: 'web', source: `xen:${uuid}`, bootNonce: newBootNonce() }],
  [gone, { name: 'gone', source: `xen:${domid}`, bootNonce: newBootNonce() }],
])
const enter = () =>
  changeOwners(register, () => [...vms].map(([id, vm]) => ({ ...vm, uuid: id, owner: owner.publicKey })), {
    create: true,
  })

async function attempt(id: string): Promise<void> {
  const vm = { uuid: id, bootNonce: vms.get(id)?.bootNonce ?? '' }
  const token = mintToken({
    ...{ owner, vm, holder: holder.publicKey, rights: ['memory.read'] },
    ...{ audience: key.publicKey, expires: '10m' },
  })
  try {
    await using connection = await connectBroker({ path: socket, key: holder })
    const { memory } = await connection.redeem<'memory.read'>(token)
    const [result] = await memory.read([{ space: 0n, at: 0x100_0000n, length: 8 }])
    console.log(`read ${result?.bytes.length} bytes`)
  } catch (error) {
    console.log(CloudAppError.is(error) ? `${error.code}: ${error.message}` : String(error))
  }
}

await enter()
const socket = join(folder, 'broker.sock')
await using broker = await openBroker({ key, register, state: join(folder, 'state') })
await broker.listen({ socket })
await attempt(uuid)
await attempt(gone)
while (!existsSync(file)) await sleep(200)
await attempt(uuid)
vms.set(uuid, { name: 'web', source: `xen:${uuid}`, bootNonce: newBootNonce() })
await enter()
await broker.reload()
await attempt(uuid)
console.log('done')
