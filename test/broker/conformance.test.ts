import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { vi } from 'vitest'
import { LocalMemory } from '../../src/vmi/local.js'
import { memoryConformance } from '../conformance/memory.js'
import { FakeVm } from './fake-vm.js'
import { Host } from './host.js'

// A loaded machine is slow, not wrong.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

// The real thing on each side: mapped memory behind a broker, its client over a unix socket.
memoryConformance('RemoteMemory through a broker over a unix socket', async ({ ram }) => {
  const host = await Host.start()
  const path = join(host.folder, 'ram')
  writeFileSync(path, ram)
  let paused = false
  let generation = 0
  const pause = { paused: () => paused, generation: () => generation }
  const local = LocalMemory.open({ path, writable: true, pause })
  host.vms['fake:web'] = new FakeVm(ram, local)
  const owner = await host.connectOwner()
  const { token } = await owner.delegate({
    vm: 'web-1',
    to: host.holder.publicKey,
    rights: ['memory.read', 'memory.write'],
    expires: '10m',
  })
  const connection = await host.connect()
  const vm = await connection.redeem<'memory.read' | 'memory.write'>(token)
  return {
    memory: vm.memory,
    setPaused: (now) => {
      if (!now) generation++
      paused = now
    },
    close: async () => {
      await vm.close()
      await host[Symbol.asyncDispose]()
      local.close()
    },
  }
})
