import { CloudAppError } from '../src/errors.js'
import { loadShim } from '../src/native/shim.js'
import { XenAgent } from '../src/vmi/sources/xen-agent.js'
import { type Measurement, median } from './measure.js'

/** More than a busy host's guests make together. */
const RATE = 1_000_000
const EVENTS = 3_000_000
const ROUNDS = 3

interface Round {
  readonly events: number
  readonly lost: number
  readonly seconds: number
  readonly cpuUs: number
}

/**
 * From the agent's ring to the async iterator: the agent makes events up, as emulated exits would hide what the way costs.
 * The consumer looks at each event, so that its columns are really there.
 */
async function round(agent: XenAgent, rate: number): Promise<Round> {
  const stream = await agent.subscribe({
    trap: { kind: 'register', register: 'cr3' },
    captures: { value: { register: 'rax' } },
  })
  const cpu = process.cpuUsage()
  const began = performance.now()
  await agent.synthetic(stream as never, EVENTS, rate)
  let events = 0
  let lost = 0
  let last = -1n
  for await (const { count, dropped, columns } of stream) {
    events += count
    lost += dropped
    last = columns.value[count - 1] as bigint
    if (events + lost >= EVENTS) break
  }
  const seconds = (performance.now() - began) / 1000
  const { user, system } = process.cpuUsage(cpu)
  if (last !== BigInt(EVENTS - 1)) throw new Error(`the last event was ${last}`)
  return { events, lost, seconds, cpuUs: user + system }
}

export async function benchEvents(progress: (message: string) => void): Promise<Measurement[]> {
  progress('events from a synthetic ring')
  const agent = new XenAgent(loadShim(), 'synthetic')
  try {
    await round(agent, RATE)
    const rounds: Round[] = []
    for (let i = 0; i < ROUNDS; i++) rounds.push(await round(agent, RATE))
    const lost = rounds.reduce((sum, each) => sum + each.lost, 0)
    return [
      {
        name: 'events.cpu-per-event',
        value: median(rounds.map(({ events, cpuUs }) => cpuUs / events)),
        unit: 'us',
        note: `CPU of the consumer's process at ${RATE} events a second, ring to async iterator`,
      },
      {
        name: 'events.synthetic-rate',
        value: median(rounds.map(({ events, seconds }) => events / seconds)),
        unit: '1/s',
        note: `${EVENTS} events each time, ${lost} of them lost in ${ROUNDS} rounds`,
      },
    ]
  } finally {
    await agent.close(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'done'))
  }
}
