import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeEach, describe, expect, it, vi } from 'vitest'
import { type Deferred, deferred } from '../../../src/transport/deferred.js'
import { openXenDirect, type XenDirectOptions } from '../../../src/vmi/sources/xen-direct.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const folder = mkdtempSync(join(tmpdir(), 'cloudapp-direct-'))
const ram = join(folder, 'ram')
writeFileSync(ram, Buffer.from('guest'.repeat(4096)))
afterAll(() => rmSync(folder, { recursive: true }))

// With Xen: test/rig/xen/flask.test.ts. Here a file is the domain, mapped by the native library all the same; what Xen says
// of it, and how long the agent takes to end, is the test's to say.
const xen = vi.hoisted(() => ({ probe: 0, agentEnded: Promise.resolve() }))
vi.mock('../../../src/native/shim.js', async (original) => {
  const real = await original<typeof import('../../../src/native/shim.js')>()
  const shim = real.loadShim()
  const loadShim = () => ({
    ...shim,
    ca_xen_open: () => shim.ca_mem_open_file(Buffer.from(`${ram}\0`), new BigUint64Array(3), 0, 0),
    ca_xen_probe: () => xen.probe,
  })
  return { ...real, loadShim }
})
vi.mock('../../../src/vmi/sources/xen-agent.js', () => ({
  XenAgent: class {
    close = () => xen.agentEnded
  },
}))

/** enum ca_error, cloudapp.h. */
const CA_E_REVOKED = -5

let agent: Deferred<void>
beforeEach(() => {
  agent = deferred()
  xen.probe = 0
  xen.agentEnded = agent.promise
})

const open = (options: Partial<XenDirectOptions> = {}) =>
  openXenDirect({
    domid: 7,
    identity: { name: 'web-1', uuid: '77777777-7777-4777-8777-777777777777', bootNonce: '0'.repeat(32) },
    pause: true,
    ...options,
  })

describe('direct access that is over', () => {
  const cases: [string, string, () => Partial<XenDirectOptions>, number][] = [
    ['by its time', 'ERR_CLOUDAPP_EXPIRED', () => ({ expires: Date.now() + 300 }), 0],
    ['as Xen says', 'ERR_CLOUDAPP_REVOKED', () => ({}), CA_E_REVOKED],
  ]
  it.each(cases)(
    '%s gives no byte of what was mapped, however long the agent takes to end',
    async (_, code, options, probe) => {
      const vm = await open(options())
      const first = [{ space: 0n, at: 0n, length: 5 }]
      expect(Buffer.from((await vm.memory.read(first))[0]?.bytes ?? []).toString()).toBe('guest')
      const over = new Promise((resolve) => vm.closed.addEventListener('abort', resolve, { once: true }))
      xen.probe = probe
      await over
      expect(vm.closed.reason).toMatchObject({ code, vm: 'web-1' })
      await expect(vm.memory.read(first)).rejects.toBe(vm.closed.reason)
      expect(() => vm.memory.sync.read(first)).toThrow(vm.closed.reason as Error)
      agent.resolve()
      await vm.close()
      await expect(vm.memory.read(first)).rejects.toBe(vm.closed.reason)
    },
  )

  it('ends at its time also when no timer is as long', async () => {
    const DAY = 86_400_000
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'Date'] })
    try {
      const vm = await open({ expires: Date.now() + 40 * DAY })
      await vi.advanceTimersByTimeAsync(39 * DAY)
      expect(vm.closed.aborted).toBe(false)
      await vi.advanceTimersByTimeAsync(DAY)
      expect(vm.closed.reason).toMatchObject({ code: 'ERR_CLOUDAPP_EXPIRED' })
      agent.resolve()
      await vm.close()
    } finally {
      vi.useRealTimers()
    }
  })

  it('by its holder is closed, and not taken back', async () => {
    const vm = await open()
    agent.resolve()
    await vm.close()
    await expect(vm.memory.read([{ space: 0n, at: 0n, length: 5 }])).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_CLOSED',
    })
  })
})
