import { CloudAppError } from '../../src/errors.js'
import { loadShim } from '../../src/native/shim.js'
import { XenAgent } from '../../src/vmi/sources/xen-agent.js'
import { grown, type Soaked, usage } from './usage.js'

/** Subscriptions the events are spread over, one after the other: what each holds must go with it. */
const SUBSCRIPTIONS = 100

/**
 * Events the agent makes up, from its ring to the iterator, over many subscriptions; the first tenth only warms up.
 *
 * @param events in all; each must arrive.
 */
export async function syntheticEvents(events: number): Promise<Soaked> {
  const began = performance.now()
  const each = Math.ceil(events / SUBSCRIPTIONS)
  const agent = new XenAgent(loadShim(), 'synthetic')
  try {
    const run = async (subscriptions: number): Promise<number> => {
      let lost = 0
      for (let i = 0; i < subscriptions; i++) lost += await subscription(agent, each)
      return lost
    }
    await run(SUBSCRIPTIONS / 10)
    const before = await usage(/memfd:cloudapp/)
    const lost = await run(SUBSCRIPTIONS)
    const after = await usage(/memfd:cloudapp/)
    const seconds = (performance.now() - began) / 1000
    const bad = [...grown(before, after), ...(lost > 0 ? [`${lost} events were lost`] : [])]
    return { name: 'events.synthetic', unit: 'events', count: each * SUBSCRIPTIONS, seconds, before, after, grown: bad }
  } finally {
    await agent.close(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'done'))
  }
}

async function subscription(agent: XenAgent, events: number): Promise<number> {
  const stream = await agent.subscribe({
    trap: { kind: 'register', register: 'cr3' },
    captures: { value: { register: 'rax' } },
  })
  await agent.synthetic(stream as never, events, 0)
  let seen = 0
  let lost = 0
  for await (const { count, dropped } of stream) {
    seen += count
    lost += dropped
    if (seen + lost >= events) break
  }
  return lost
}
