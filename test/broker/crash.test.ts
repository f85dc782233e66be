import { appendFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { verifyAudit } from '../../src/broker/audit/index.js'
import { openBroker } from '../../src/broker/broker.js'
import { type BrokerConnection, connectBroker, connectOwner } from '../../src/broker/client.js'
import type { Delegation } from '../../src/capabilities/delegation.js'
import { createKeyFile, loadKey } from '../../src/capabilities/key-files.js'
import { KeyPair } from '../../src/capabilities/keys.js'
import { newBootNonce, writeOwners } from '../../src/capabilities/owners.js'
import type { TokenText } from '../../src/capabilities/token.js'
import { CloudAppError } from '../../src/errors.js'
import { randomFrom } from '../capabilities/fuzz.js'
import { Child } from './child.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

// A step of `npm test` kills 200 times; `npm run test:unit` a few.
const KILLS = Number(process.env.CLOUDAPP_KILLS ?? 12)
const SEED = Number(process.env.CLOUDAPP_KILLS_SEED ?? Date.now() % 2 ** 31)

/** More than are used, so that what is left tells how many were counted; and few, so that they run out. */
const MANY = 1_000_000
const FEW = 40

const one = [{ space: 0n, at: 0n, length: 8 }]
type Reader = Delegation<'memory.read'>

describe('a broker that is killed', () => {
  let folder: string
  let brokerKey: KeyPair
  const owner = KeyPair.generate()
  const holder = KeyPair.generate()
  const random = randomFrom(SEED)
  const path = (name: string) => join(folder, name)
  const children: Child[] = []
  /** The next broker: its program is loaded while the one before is under load. */
  let spare: Promise<Child>
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'cloudapp-crash-'))
    await createKeyFile(path('key'))
    brokerKey = await loadKey(path('key'))
    const vm = { name: 'web-1', uuid: '11111111-2222-3333-4444-555555555555', bootNonce: newBootNonce(), source: 'x:y' }
    await writeOwners(path('owners'), [{ ...vm, owner: owner.publicKey }])
    spare = load()
  })
  afterAll(async () => {
    await spare
    for (const child of children) await child.kill()
    rmSync(folder, { recursive: true, force: true })
  })

  async function load(): Promise<Child> {
    const child = await Child.start('broker-child.ts', [path('key'), path('owners'), path('state'), path('sock')])
    children.push(child)
    return child
  }

  /** A broker that has been told to start. */
  async function begin(): Promise<Child> {
    const child = await spare
    spare = load()
    child.say(random(4) === 0 ? 'always' : 'interval')
    return child
  }

  async function start(): Promise<Child> {
    const child = await begin()
    expect(await child.next()).toMatchObject({ ready: true })
    return child
  }

  const sound = async () =>
    expect(await verifyAudit(path('state/audit.log'), { brokerKey: brokerKey.publicKey })).toMatchObject({ ok: true })

  /** What a use came to: how often it was asked for, and how often it was answered. */
  const uses = { asked: 0, answered: 0, few: 0 }
  /** Tokens whose revocation was answered. */
  const revoked: TokenText[] = []
  let many: TokenText | undefined
  let few: TokenText | undefined

  const mustBeRevoked = (connection: BrokerConnection, token: TokenText | undefined) =>
    expect(connection.redeem(token as TokenText)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_REVOKED' })

  /** No use that was answered is missing from the count, and none is counted that was not asked for. */
  async function mustBeCounted(vm: Reader): Promise<void> {
    const left = (await vm.budget()).uses ?? Number.NaN
    expect(left).toBeLessThanOrEqual(MANY - uses.answered)
    expect(left).toBeGreaterThanOrEqual(MANY - uses.asked)
  }

  /** Reads until it fails with an error of ours. */
  async function readOn(vm: Reader, done: () => void, asked = () => {}): Promise<void> {
    try {
      for (;;) {
        asked()
        await vm.memory.read(one)
        done()
      }
    } catch (error) {
      if (!CloudAppError.is(error)) throw error
    }
  }

  /** One life: what was promised before holds; then load, and the end at a moment nobody chose. */
  async function live(broker: Child): Promise<void> {
    const own = await connectOwner({ path: path('sock'), key: owner })
    const give = (more: object = {}) =>
      own.delegate({ vm: 'web-1', to: holder.publicKey, rights: ['memory.read'], expires: '1h', ...more })
    many ??= (await give({ uses: MANY })).token
    few ??= (await give({ uses: FEW })).token
    const connection = await connectBroker({ path: path('sock'), key: holder })
    for (const token of revoked.slice(-5)) await mustBeRevoked(connection, token)
    for (let i = 0; i < 5 && revoked.length > 0; i++) await mustBeRevoked(connection, revoked[random(revoked.length)])
    const counted = await connection.redeem<'memory.read'>(many)
    await mustBeCounted(counted)
    const grants = await Promise.all(Array.from({ length: 4 }, () => give()))
    const victims = await Promise.all(grants.map(({ token }) => connection.redeem<'memory.read'>(token)))
    // Moments are counted in what was answered, so that a slow machine is killed at the same ones.
    let progress = 0
    let over = false
    const at = async (moment: number) => {
      while (progress < moment && !over) await new Promise((resolve) => setImmediate(resolve))
    }
    const work = [
      readOn(
        counted,
        () => {
          uses.answered++
          progress++
        },
        () => uses.asked++,
      ),
      ...victims.map((vm) => readOn(vm, () => {})),
      connection.redeem<'memory.read'>(few).then(async (vm) => {
        for (let i = random(3); i >= 0; i--) await vm.memory.read(one).then(() => uses.few++)
      }),
      ...grants.map(async ({ revoke, token }) => {
        await at(random(30))
        await revoke()
        progress++
        revoked.push(token)
      }),
    ].map((promise) =>
      // Killed before it could say so: that one may be either.
      promise.catch((error) => {
        if (!CloudAppError.is(error)) throw error
      }),
    )
    await at(random(60))
    await broker.kill('SIGKILL')
    over = true
    await Promise.all(work)
    await Promise.all([own.close(), connection.close()])
  }

  it(`forgets no revocation and no use, in ${KILLS} kills under load (seed ${SEED})`, async () => {
    let starting = 0
    for (let kill = 1; kill <= KILLS; kill++) {
      // One in eight while it starts, reads its journal, writes it anew, goes on with its log.
      if (kill > 1 && random(8) === 0) {
        const broker = await begin()
        await sleep(random(25))
        await broker.kill('SIGKILL')
        starting++
      } else await live(await start())
      if (kill % 25 === 0) await sound()
    }
    expect(revoked.length).toBeGreaterThanOrEqual(KILLS / 2)
    expect(uses.answered).toBeGreaterThan(KILLS)
    const last = await start()
    const connection = await connectBroker({ path: path('sock'), key: holder })
    for (const token of revoked) await mustBeRevoked(connection, token)
    await mustBeCounted(await connection.redeem<'memory.read'>(many as TokenText))
    const short = await connection.redeem<'memory.read'>(few as TokenText)
    await readOn(short, () => uses.few++)
    await expect(short.memory.read(one)).rejects.toMatchObject({ details: { limit: 'uses', most: FEW } })
    expect(uses.few).toBeLessThanOrEqual(FEW)
    await connection.close()
    await last.kill('SIGTERM')
    await sound()
    console.log(
      `${KILLS} kills, ${starting} of them at the start: ${revoked.length} revocations, ${uses.answered} uses held`,
    )
  }, 900_000)

  it('takes a torn last line of its journal for what it is, and a damaged one for what that is', async () => {
    const journal = path('state/state.journal')
    const good = readFileSync(journal)
    appendFileSync(journal, '0123456789abcdef {"kind":"revo')
    const broker = await start()
    await broker.kill('SIGTERM')
    const text = readFileSync(journal, 'utf8')
    expect(text.endsWith('\n')).toBe(true)
    const bytes = Buffer.from(good)
    bytes[30] = (bytes[30] as number) ^ 1
    writeFileSync(journal, bytes)
    await expect(openBroker({ key: brokerKey, register: path('owners'), state: path('state') })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_STORE',
      message: expect.stringMatching(/line 1/),
    })
  })
})
