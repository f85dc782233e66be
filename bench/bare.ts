import { spawn } from 'node:child_process'
import { generateKeyPairSync, sign, verify } from 'node:crypto'
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Measurement, median } from './measure.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const CHUNK = 4 << 20
const STREAM = 96 * CHUNK

/**
 * What this machine takes for the least that a broker's answer needs, with nothing of ours in it: how near the broker comes to
 * that says more than its times on a machine that is half as fast an hour later.
 */
export async function bare(folder: string): Promise<Measurement[]> {
  const socket = path.join(folder, 'bare.sock')
  const peer = spawn(
    process.execPath,
    [
      ...['--import', path.join(root, 'scripts/ts.mjs'), path.join(root, 'bench/bare-peer.ts')],
      ...[socket, String(STREAM), String(CHUNK)],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'], cwd: root },
  )
  try {
    await once(peer.stdout, 'data')
    const connection = connect(socket)
    await once(connection, 'connect')
    const trips: number[] = []
    for (let i = 0; i < 10; i++) trips.push(await roundTrip(connection))
    const span = `${Math.min(...trips).toFixed(0)} to ${Math.max(...trips).toFixed(0)}`
    const placed = `two Node processes, 150 bytes over a unix socket; ${span} by which processors they are on`
    const rates: number[] = []
    for (let i = 0; i < 5; i++) rates.push(await streamed(connection))
    connection.destroy()
    return [
      { name: 'bare.verify-4', value: verify4(), unit: 'us', note: 'four Ed25519 signatures checked by node:crypto' },
      { name: 'bare.round-trip', value: median(trips), unit: 'us', note: placed },
      { name: 'bare.stream', value: median(rates), unit: 'GB/s', note: 'the same two, 384 MiB in writes of 4 MiB' },
    ]
  } finally {
    peer.kill()
  }
}

function verify4(): number {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  const message = Buffer.alloc(300)
  const signature = sign(null, message, privateKey)
  const took: number[] = []
  for (let i = 0; i < 2500; i++) {
    const start = performance.now()
    for (let k = 0; k < 4; k++)
      if (!verify(null, message, publicKey, signature)) throw new Error('a signature is wrong')
    if (i >= 500) took.push((performance.now() - start) * 1000)
  }
  return median(took)
}

async function roundTrip(connection: Socket): Promise<number> {
  const message = Buffer.alloc(150)
  const took: number[] = []
  for (let i = 0; i < 1000; i++) {
    const start = performance.now()
    connection.write(message)
    await once(connection, 'data')
    if (i >= 200) took.push((performance.now() - start) * 1000)
  }
  return median(took)
}

async function streamed(connection: Socket): Promise<number> {
  const start = performance.now()
  connection.write(Buffer.alloc(1))
  let left = STREAM
  await new Promise<void>((resolve) => {
    const onData = (chunk: Buffer): void => {
      left -= chunk.length
      if (left > 0) return
      connection.off('data', onData)
      resolve()
    }
    connection.on('data', onData)
  })
  return STREAM / 1e6 / (performance.now() - start)
}
