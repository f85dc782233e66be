import { describe, expect, it } from 'vitest'
import { KeyPair } from '../../src/capabilities/keys.js'
import { SdClient } from '../../src/service/client.js'
import { memoryChannelPair } from '../../src/transport/index.js'
import { collect, Served } from './served.js'
import { later } from './support.js'

/** Milliseconds that a call is given; and far more than one that heeds them takes, far less than any other deadline. */
const GIVEN = 100
const IN_TIME = 5000

/** A service domain that takes connections, answers while `talks`, and then nothing, on old connections and on new ones. */
class Mute {
  readonly sd = new Served()
  talks = true

  readonly connect = async () => {
    const [ours, theirs] = memoryChannelPair(['admin', 'sd'])
    const real = this.sd.channel('admin')
    const pump = async (from: typeof real, to: typeof real, heard: () => boolean) => {
      for (let bytes = await from.read(); bytes !== undefined; bytes = await from.read()) {
        if (heard()) to.write(bytes)
      }
      await to.close()
    }
    for (const way of [pump(theirs, real, () => true), pump(real, theirs, () => this.talks)]) way.catch(() => undefined)
    return ours
  }

  /** Ends the client's session, so that the next call connects anew. */
  async drop(client: SdClient): Promise<void> {
    await this.sd.server.drop()
    // The first call may still meet the session that is ending.
    await client.describe({ signal: AbortSignal.timeout(GIVEN) }).catch(() => undefined)
  }

  async client(): Promise<SdClient> {
    const client = await SdClient.connect(this.connect)
    later(() => client.close())
    return client
  }
}

async function endsInTime(work: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
  const began = performance.now()
  await expect(work(AbortSignal.timeout(GIVEN))).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
  expect(performance.now() - began).toBeLessThan(IN_TIME)
}

const digest = `sha256:${'0'.repeat(64)}`
const CALLS: Record<string, (client: SdClient, signal: AbortSignal) => Promise<unknown>> = {
  'findings.list': (client, signal) => collect(client.findings.list({ signal })),
  'findings.get': (client, signal) => client.findings.get('uid', { signal }),
  'findings.acknowledge': (client, signal) => client.findings.acknowledge('uid', { signal }),
  'artifacts.read': (client, signal) => collect(client.artifacts.read('uid', digest, { signal })),
  describe: (client, signal) => client.describe({ signal }),
  health: (client, signal) => client.health({ signal }),
  run: (client, signal) => client.run({ signal }),
}

describe('a service domain that says nothing', () => {
  it.each(Object.keys(CALLS))(
    'keeps %s no longer than its signal says, in a session and in connecting anew',
    async (name) => {
      const mute = new Mute()
      const client = await mute.client()
      const call = CALLS[name] as (typeof CALLS)[string]
      mute.talks = false
      await endsInTime((signal) => call(client, signal))
      await mute.drop(client)
      await endsInTime((signal) => call(client, signal))
      // Nor does one that got stuck stand in the way of the next.
      mute.talks = true
      await client.describe()
    },
  )

  it('keeps nobody who waits for a connection that another, without a deadline, asked for', async () => {
    const mute = new Mute()
    const client = await mute.client()
    mute.talks = false
    await mute.drop(client)
    const patient = client.describe()
    await endsInTime((signal) => client.health({ signal }))
    await client.close()
    await expect(patient).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
  })

  it('keeps no SdClient.connect, also with a key and where no channel comes', async () => {
    const mute = new Mute()
    mute.talks = false
    await endsInTime((signal) => SdClient.connect(mute.connect, { signal, key: KeyPair.generate() }))
    await endsInTime((signal) => SdClient.connect(() => new Promise(() => {}), { signal }))
  })

  it('ends a watch without an error', async () => {
    const mute = new Mute()
    const client = await mute.client()
    mute.talks = false
    expect(await collect(client.findings.watch({ signal: AbortSignal.timeout(GIVEN) }))).toEqual([])
    await mute.drop(client)
    expect(await collect(client.findings.watch({ signal: AbortSignal.timeout(GIVEN) }))).toEqual([])
  })
})
