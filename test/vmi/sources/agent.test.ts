import { existsSync, readdirSync } from 'node:fs'
import { afterEach, describe, expect, it, vi } from 'vitest'
import { CloudAppError } from '../../../src/errors.js'
import { loadShim } from '../../../src/native/shim.js'
import type { EventStream } from '../../../src/vmi/events/source.js'
import { XenAgent } from '../../../src/vmi/sources/xen-agent.js'
import { EVENT_CASES, type EventRig } from '../../conformance/events.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000 })

/** The event agent itself, as a process, with events that it makes up: everything but a hypervisor. */
const open: XenAgent[] = []
const closed = () => new CloudAppError('ERR_CLOUDAPP_CLOSED', 'the VM is closed')
function synthetic(): XenAgent {
  const agent = new XenAgent(loadShim(), 'synthetic')
  open.push(agent)
  return agent
}
afterEach(async () => {
  for (const agent of open.splice(0)) await agent.close(closed())
})

/** Makes events, once those before are made: the agent makes them for one program at a time. */
async function make(agent: XenAgent, stream: unknown, events: number, rate = 0): Promise<void> {
  for (;;) {
    try {
      await agent.synthetic(stream as EventStream, events, rate)
      return
    } catch (error) {
      if (!(error as Error).message.includes('under way')) throw error
    }
  }
}

describe('the event agent', () => {
  describe('as a source of events', () => {
    // What can be trapped is a domain's answer, and here is none.
    for (const { name, run } of EVENT_CASES.filter((test) => test.name !== 'says what it traps')) {
      it(name, async () => {
        const agent = synthetic()
        const rig: EventRig = {
          source: agent,
          trap: { kind: 'register', register: 'cr3' },
          exact: true,
          fire: (stream, count) => make(agent, stream, count),
        }
        await run(rig)
      })
    }
  })

  it('is one for all subscriptions, and leaves nothing behind', async () => {
    const descriptors = readdirSync('/proc/self/fd').length
    const agent = synthetic()
    const streams = await Promise.all(Array.from({ length: 8 }, () => agent.subscribe({ trap: { kind: 'cpuid' } })))
    const pid = await agent.pid()
    expect(existsSync(`/proc/${pid}`)).toBe(true)
    await agent.close(closed())
    expect(existsSync(`/proc/${pid}`)).toBe(false)
    for (const stream of streams) expect(stream.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    await expect(agent.subscribe({ trap: { kind: 'cpuid' } })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_CLOSED' })
    expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(descriptors)
  })

  it('that is killed ends its streams with what had come, and the next use starts another', async () => {
    const agent = synthetic()
    const stream = await agent.subscribe({ trap: { kind: 'cpuid' } })
    await make(agent, stream, 1000)
    while ((await stream.counts()).matched < 1000) await new Promise((resolve) => setTimeout(resolve, 1))
    process.kill((await agent.pid()) as number, 'SIGKILL')
    let events = 0
    const all = (async () => {
      for await (const { count } of stream) events += count
    })()
    await expect(all).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_SOURCE',
      message: expect.stringContaining('SIGKILL'),
    })
    expect(events).toBe(1000)
    expect(await stream.counts()).toEqual({ matched: 1000, dropped: 0 })
    await stream.close()

    const again = await agent.subscribe({ trap: { kind: 'cpuid' } })
    await make(agent, again, 10)
    const { value } = await again[Symbol.asyncIterator]().next()
    expect(value?.columns.serial[0]).toBe(0n)
  })

  it('keeps a slow and a fast consumer apart at a high rate', async () => {
    const agent = synthetic()
    const fast = await agent.subscribe({ trap: { kind: 'cpuid' } })
    const slow = await agent.subscribe({ trap: { kind: 'cpuid' } }, { buffer: 64 * 1024 })
    await make(agent, slow, 200_000)
    await make(agent, fast, 200_000, 200_000)
    let seen = 0
    let lost = 0
    for await (const { count, dropped } of fast) {
      seen += count
      lost += dropped
      if (seen + lost >= 200_000) break
    }
    expect({ seen, lost }).toEqual({ seen: 200_000, lost: 0 })
    while ((await slow.counts()).matched < 200_000) await new Promise((resolve) => setTimeout(resolve, 1))
    expect((await slow.counts()).dropped).toBeGreaterThan(190_000)
  })
})
