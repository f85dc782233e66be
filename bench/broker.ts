import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import {
  attenuateToken,
  createKeyFile,
  KeyPair,
  loadKey,
  mintToken,
  newBootNonce,
  verifyToken,
  writeOwners,
} from '@cloudapp/sdk'
import { connectOwner } from '@cloudapp/sdk/broker'
import { bare } from './bare.js'
import { type Measurement, median } from './measure.js'

const root = fileURLToPath(new URL('..', import.meta.url))

/** What the command's first line gives Node, as docs/broker.md advises who reads much. */
function nodeFlag(): string {
  const flag = /^#!.* node (--\S+)$/m.exec(readFileSync(path.join(root, 'dist/cli/main.js'), 'utf8'))?.[1]
  if (flag === undefined) throw new Error('the first line of dist/cli/main.js gives Node no flag')
  return flag
}

/** A process that takes orders as lines of JSON. */
class Worker {
  readonly #process: ChildProcess
  readonly #lines: AsyncIterator<string>

  constructor(args: readonly string[]) {
    this.#process = spawn(process.execPath, [...args], { stdio: ['pipe', 'pipe', 'inherit'], cwd: root })
    this.#lines = createInterface({ input: this.#process.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]()
  }

  static client(key: string, socket: string): Worker {
    return new Worker([
      nodeFlag(),
      '--import',
      path.join(root, 'scripts/ts.mjs'),
      path.join(root, 'bench/broker-client.ts'),
      key,
      socket,
    ])
  }

  async line(): Promise<string> {
    const { value, done } = await this.#lines.next()
    if (done) throw new Error('a process of the measurement ended')
    return value
  }

  async ask<T>(op: string, more: object = {}): Promise<T> {
    this.#process.stdin?.write(`${JSON.stringify({ op, ...more })}\n`)
    return JSON.parse(await this.line()) as T
  }

  async end(): Promise<void> {
    if (this.#process.exitCode !== null) return
    const gone = new Promise((resolve) => this.#process.once('exit', resolve))
    this.#process.kill()
    await gone
  }
}

/** A broker and its clients, each in a process of its own, over a unix socket; every operation metered and audited. */
export async function benchBroker(ram: string, progress: (message: string) => void): Promise<Measurement[]> {
  const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-bench-'))
  const file = (name: string) => path.join(folder, name)
  const workers: Worker[] = []
  try {
    progress('measuring the broker')
    const [owner, , holder] = await Promise.all(['owner', 'broker', 'holder'].map((name) => createKeyFile(file(name))))
    if (owner === undefined || holder === undefined) throw new Error('no keys')
    const uuid = crypto.randomUUID()
    const entry = { name: 'bench', uuid, bootNonce: newBootNonce(), owner: owner.publicKey, source: `raw:${ram}` }
    await writeOwners(file('owners.json'), [entry])
    const config = { key: 'broker', register: 'owners.json', state: 'state', socket: 'broker.sock' }
    writeFileSync(file('broker.json'), JSON.stringify(config))
    // As the systemd unit in examples/broker runs it.
    const cli = [nodeFlag(), '--v8-pool-size=1', path.join(root, 'dist/cli/main.js')]
    const broker = new Worker([...cli, 'broker', '--config', file('broker.json')])
    workers.push(broker)
    await broker.line()
    const socket = file('broker.sock')
    const clients = Array.from({ length: 4 }, () => Worker.client(file('holder'), socket))
    workers.push(...clients)
    await using customer = await connectOwner({ path: socket, key: await loadKey(file('owner')) })
    const delegate = () =>
      customer.delegate({
        vm: 'bench',
        to: holder.publicKey,
        rights: ['memory.read'],
        expires: '1h',
        // Limits that are never reached: what is measured is metered.
        bytesPerSecond: 1e12,
        operationsPerSecond: 1e9,
      })
    return [
      ...(await bare(folder)),
      verify4(),
      ...(await small(clients, (await delegate()).token)),
      await revokeAll(clients, delegate),
      await flooded(clients, (await delegate()).token),
    ]
  } finally {
    await Promise.all(workers.map((worker) => worker.end()))
    rmSync(folder, { recursive: true, force: true })
  }
}

/** A chain of an owner's block and three that narrow it. */
function verify4(): Measurement {
  const [owner, holder, broker] = [KeyPair.generate(), KeyPair.generate(), KeyPair.generate()]
  const vm = { uuid: crypto.randomUUID(), bootNonce: newBootNonce() }
  let token = mintToken({
    owner,
    vm,
    holder: holder.publicKey,
    rights: ['vm.info', 'memory.read'],
    audience: broker.publicKey,
    expires: '1h',
  })
  for (let i = 0; i < 3; i++) token = attenuateToken(token, { holder, uses: 1000 - i })
  const options = {
    broker: broker.publicKey,
    ownerOf: () => ({ owner: owner.publicKey, bootNonce: vm.bootNonce }),
    now: Date.now(),
    revoked: () => false,
  }
  const took: number[] = []
  for (let i = 0; i < 2500; i++) {
    const start = performance.now()
    verifyToken(token, options)
    if (i >= 500) took.push((performance.now() - start) * 1000)
  }
  return { name: 'token.verify-4', value: median(took), unit: 'us', note: 'four blocks, four signatures, median' }
}

async function small([client]: readonly Worker[], token: string): Promise<Measurement[]> {
  if (client === undefined) throw new Error('no client')
  await client.ask('open', { token })
  const read = median(await client.ask<number[]>('read', { count: 4000 }))
  const batch = median(await client.ask<number[]>('batch', { count: 1000 }))
  const addresses = median(await client.ask<number[]>('addresses', { count: 1000 }))
  const call = median(await client.ask<number[]>('call', { count: 4000 }))
  const bytes = 4 * 1024 * 1024
  const rounds: number[] = []
  for (let i = 0; i < 5; i++) rounds.push(await client.ask<number>('stream', { count: 96, bytes }))
  return [
    { name: 'broker.call.median', value: call, unit: 'us', note: 'an RPC with nothing behind it: what capnweb takes' },
    { name: 'broker.read-8.median', value: read, unit: 'us', note: '8 bytes, one read at a time' },
    { name: 'broker.read-batch256.median', value: batch, unit: 'us', note: '256 reads of 8 bytes in one batch' },
    { name: 'broker.read-addresses256.median', value: addresses, unit: 'us', note: '8 bytes at each of 256 addresses' },
    { name: 'broker.stream', value: median(rounds), unit: 'GB/s', note: '384 MiB in reads of 4 MiB, 4 on their way' },
  ]
}

/** From the owner's call to the last answer that any of 100 busy sessions gets. */
async function revokeAll(
  clients: readonly Worker[],
  delegate: () => Promise<{ readonly token: string; revoke(): Promise<void> }>,
): Promise<Measurement> {
  const took: number[] = []
  for (let round = 0; round < 6; round++) {
    const granted = await delegate()
    await Promise.all(clients.map((client) => client.ask('open', { token: granted.token, count: 25 })))
    await Promise.all(clients.map((client) => client.ask('busy')))
    await new Promise((resolve) => setTimeout(resolve, 500))
    const start = process.hrtime.bigint()
    await granted.revoke()
    const ends = await Promise.all(clients.map((client) => client.line()))
    const last = ends.flatMap((line) => (JSON.parse(line) as string[]).map(BigInt))
    if (last.length !== 100 || last.some((at) => at === 0n)) throw new Error('not every session was busy')
    // The first round warms up.
    if (round > 0) took.push(Math.max(0, ...last.map((at) => Number(at - start) / 1e6)))
  }
  return {
    name: 'broker.revoke-to-denied.100-sessions',
    value: median(took),
    unit: 'ms',
    note: `to the last answer in any of 100 busy sessions (4 processes), median of 5, worst ${Math.max(...took).toFixed(1)}`,
  }
}

async function flooded([victim, flooder]: readonly Worker[], token: string): Promise<Measurement> {
  if (victim === undefined || flooder === undefined) throw new Error('no clients')
  await Promise.all([victim, flooder].map((client) => client.ask('open', { token })))
  await flooder.ask('flood', { count: 200, bytes: 256 * 1024 })
  const took = await victim.ask<number[]>('read', { count: 2000 })
  await flooder.ask('stop')
  const p99 = took.sort((a, b) => a - b)[Math.floor(took.length * 0.99)] ?? Number.NaN
  const note = '8-byte reads while another session keeps 200 reads of 256 KiB on their way'
  return { name: 'broker.flooded-p99', value: p99 / 1000, unit: 'ms', note }
}
