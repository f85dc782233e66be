import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Broker, type BrokerOptions, openBroker } from '../../src/broker/broker.js'
import { type BrokerConnection, connectBroker, connectOwner, type OwnerConnection } from '../../src/broker/client.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { type MintOptions, mintToken } from '../../src/capabilities/mint.js'
import { newBootNonce, type OwnedVm, writeOwners } from '../../src/capabilities/owners.js'
import { CloudAppError } from '../../src/errors.js'
import { FakeVm } from './fake-vm.js'

/** A host with one broker, two owners and two VMs. */
export class Host implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), 'cloudapp-broker-'))
  readonly brokerKey = KeyPair.generate()
  readonly owner = KeyPair.generate()
  readonly stranger = KeyPair.generate()
  readonly holder = KeyPair.generate()
  readonly socket = join(this.folder, 'broker.sock')
  readonly state: string
  readonly register = join(this.folder, 'owners.json')
  readonly web: OwnedVm = vm('web-1', '11111111-2222-3333-4444-555555555555', this.owner, 'fake:web')
  readonly db: OwnedVm = vm('db-1', '66666666-7777-8888-9999-aaaaaaaaaaaa', this.stranger, 'fake:db')
  vms: Record<string, FakeVm> = { 'fake:web': new FakeVm(pattern()), 'fake:db': new FakeVm(pattern()) }
  broker!: Broker
  readonly #open: { close(): Promise<void> }[] = []

  private constructor(state: string | undefined) {
    this.state = state ?? join(this.folder, 'state')
  }

  /** `state` puts the broker's state somewhere else than in the host's folder. */
  static async start(options: Partial<BrokerOptions> = {}, state?: string): Promise<Host> {
    const host = new Host(state)
    await writeOwners(host.register, [host.web, host.db])
    await host.startBroker(options)
    return host
  }

  /** The owner's token for the holder: to read `web`, for ten minutes. */
  mint(change: Partial<MintOptions> = {}): Uint8Array {
    return mintToken({
      owner: this.owner,
      vm: { uuid: this.web.uuid, bootNonce: this.web.bootNonce },
      holder: this.holder.publicKey,
      rights: ['memory.read'],
      audience: this.brokerKey.publicKey,
      expires: '10m',
      ...change,
    })
  }

  async startBroker(options: Partial<BrokerOptions> = {}): Promise<void> {
    this.broker = await openBroker({
      key: this.brokerKey,
      register: this.register,
      state: this.state,
      audit: { fsync: 'interval' },
      open: async (uri) => {
        const found = this.vms[uri]
        if (found === undefined) throw new CloudAppError('ERR_CLOUDAPP_SOURCE', `no source ${uri}`)
        return found
      },
      ...options,
    })
    await this.broker.listen({ socket: this.socket, mode: 0o666 })
  }

  async connect(key = this.holder): Promise<BrokerConnection> {
    const connection = await connectBroker({ path: this.socket, key })
    this.#open.push(connection)
    return connection
  }

  async connectOwner(key = this.owner): Promise<OwnerConnection> {
    const connection = await connectOwner({ path: this.socket, key })
    this.#open.push(connection)
    return connection
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#open.map((handle) => handle.close()))
    await this.broker.close()
    rmSync(this.folder, { recursive: true, force: true })
  }
}

function vm(name: string, uuid: string, owner: KeyPair, source: string): OwnedVm {
  return { name, uuid, bootNonce: newBootNonce(), owner: owner.publicKey, source }
}

/** 4 MiB whose every byte tells where it is. */
function pattern(): Uint8Array {
  const ram = new Uint8Array(4 * 1024 * 1024)
  const words = new Uint32Array(ram.buffer)
  for (let i = 0; i < words.length; i++) words[i] = i * 4
  return ram
}
