import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { attenuateToken } from '../../src/capabilities/attenuate.js'
import { saveKey } from '../../src/capabilities/key-files.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { mintToken } from '../../src/capabilities/mint.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'
import { tokenToText } from '../../src/capabilities/token.js'
import { Child, type ChildOptions } from './child.js'

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const MIB = 1024 * 1024
/** How long a small read may take while somebody floods, in ms. */
const BOUND = 5
/** Others on the machine take the processor away from all three: of so many stretches one must be as it is to be. */
const STRETCHES = 12
const STRETCH_MS = 400

const unit = readFileSync(new URL('../../examples/broker/cloudapp-broker.service', import.meta.url), 'utf8')
/** Node's flags, as the broker is run under systemd. */
const AS_IN_THE_UNIT = { flags: (/^Environment=NODE_OPTIONS=(.+)$/m.exec(unit)?.[1] ?? '').split(' ') }

const folder = mkdtempSync(join(tmpdir(), 'cloudapp-fair-'))
const file = (name: string) => join(folder, name)
const children: Child[] = []
let broker: Child
let victim: Child
let flooder: Child
let tokens: { readonly one: string; readonly sixteen: string }

async function start(args: readonly string[], options: ChildOptions = {}): Promise<Child> {
  const child = await Child.start('fair-child.ts', [file('broker.sock'), ...args], options)
  children.push(child)
  await child.next()
  return child
}

async function ask<T>(child: Child, order: object): Promise<T> {
  child.say(JSON.stringify(order))
  return (await child.next()) as T
}

beforeAll(async () => {
  const owner = KeyPair.generate()
  const [brokerKey, reader, hostile] = [KeyPair.generate(), KeyPair.generate(), KeyPair.generate()]
  await saveKey(file('broker'), brokerKey)
  await saveKey(file('reader'), reader)
  await saveKey(file('hostile'), hostile)
  writeFileSync(file('ram'), '')
  await truncate(file('ram'), 256 * MIB)
  const vm = { name: 'web', uuid: crypto.randomUUID(), bootNonce: newBootNonce() }
  await writeOwners(file('owners.json'), [{ ...vm, owner: owner.publicKey, source: `raw:${file('ram')}` }])
  const mint = (holder: KeyPair) =>
    mintToken({
      owner,
      vm,
      holder: holder.publicKey,
      rights: ['memory.read'],
      audience: brokerKey.publicKey,
      expires: '10m',
    })
  const one = mint(hostile)
  let sixteen = one
  for (let i = 0; i < 15; i++) sixteen = attenuateToken(sixteen, { holder: hostile })
  tokens = { one: tokenToText(one), sixteen: tokenToText(sixteen) }
  broker = await start(['broker', file('broker'), file('owners.json'), file('state')], AS_IN_THE_UNIT)
  victim = await start(['holder', file('reader'), brokerKey.publicKey])
  // What it makes of its answers is not the broker's doing: it gets what the others leave of the processors.
  flooder = await start(['holder', file('hostile'), brokerKey.publicKey], { polite: true })
  await ask(victim, { op: 'open', token: tokenToText(mint(reader)) })
})

afterAll(async () => {
  await Promise.all(children.map((child) => child.kill()))
  rmSync(folder, { recursive: true, force: true })
})

/** Median and p99 of the victim's small reads over a stretch, in ms. */
async function stretch(): Promise<{ readonly median: number; readonly p99: number }> {
  const took = (await ask<number[]>(victim, { op: 'read', ms: STRETCH_MS })).sort((a, b) => a - b)
  const at = (part: number) => took[Math.floor((took.length - 1) * part)] as number
  return { median: at(0.5), p99: at(0.99) }
}

describe("one service domain's small reads are answered within milliseconds while another floods the broker with", () => {
  it.each([
    ['digests', { sessions: 16, calls: 8, bytes: 64 * MIB }],
    ['searches', { sessions: 16, calls: 8, bytes: 256 * MIB }],
    ['walks', { sessions: 16, calls: 8 }],
    ['redemptions', { sessions: 16, calls: 4 }],
  ] as const)('%s', async (op, order) => {
    // What the machine itself makes of a broker that is busy and fair, at this moment.
    await ask(broker, { op: 'work' })
    await stretch()
    const fair = await stretch()
    await ask(broker, { op: 'rest' })
    await ask(flooder, { op, token: op === 'redemptions' ? tokens.sixteen : tokens.one, ...order })
    const seen: Awaited<ReturnType<typeof stretch>>[] = []
    const good = () => seen.some(({ median, p99 }) => median < BOUND && p99 < Math.max(BOUND, 2 * fair.p99))
    while (!good() && seen.length < STRETCHES) seen.push(await stretch())
    expect(await ask(flooder, { op: 'stop' })).toEqual([])
    expect(good(), JSON.stringify({ fair, seen })).toBe(true)
  })
})
