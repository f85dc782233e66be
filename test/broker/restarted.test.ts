import { expect, it } from 'vitest'
import { changeOwners, newBootNonce } from '../../src/capabilities/owners.js'
import { FakeVm } from './fake-vm.js'
import { Host } from './host.js'

const START = 'a'.repeat(32)
const NEXT = 'b'.repeat(32)

/** What the source finds from now on under the name that the register has for web-1. */
function found(host: Host, identity: { readonly uuid?: string; readonly bootNonce?: string }): FakeVm {
  const vm = new FakeVm(new Uint8Array(4096))
  vm.identity = { name: 'web-1', uuid: host.web.uuid, bootNonce: START, ...identity }
  host.vms['fake:web'] = vm
  return vm
}

const redeem = async (host: Host) => (await host.connect()).redeem(host.mint())

it('refuses a VM that was started anew, after a restart of the broker too, until the register says so', async () => {
  await using host = await Host.start()
  const first = found(host, {})
  await redeem(host)
  await first.close()
  found(host, {})
  await redeem(host)

  await host.vms['fake:web']?.close()
  found(host, { bootNonce: NEXT })
  await expect(redeem(host)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_SOURCE' })
  await host.broker.close()
  await host.startBroker()
  await expect(redeem(host)).rejects.toThrow(/was started anew.*cloudapp vm restarted web-1/)

  const bootNonce = newBootNonce()
  await changeOwners(host.register, (vms) => vms.map((vm) => (vm.name === 'web-1' ? { ...vm, bootNonce } : vm)))
  await host.broker.reload()
  await expect(redeem(host)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_TOKEN' })
  const anew = host.mint({ vm: { uuid: host.web.uuid, bootNonce } })
  await (await host.connect()).redeem(anew)
})

it('refuses another VM that has come to the place of the one it knows', async () => {
  await using host = await Host.start()
  const other = found(host, { uuid: host.db.uuid })
  await expect(redeem(host)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND', message: /another VM is there/ })
  expect(other.closed.aborted).toBe(true)
})
