import { ScopedMemory } from '../../../src/broker/scope/scoped-memory.js'
import { MAX_ADDRESS } from '../../../src/capabilities/index.js'
import { BufferMemory } from '../../../src/testing/memory.js'
import type { Space } from '../../../src/vmi/memory.js'
import { memoryConformance } from '../../conformance/memory.js'

// A scope that reaches everything changes nothing: the walks in it are as good as the native library's.
const ALL = [{ first: 0n, last: MAX_ADDRESS }]

memoryConformance('ScopedMemory that reaches everything', async ({ ram }) => {
  let pause: object | undefined
  const closed = new AbortController()
  const memory = new BufferMemory(ram, { paused: () => pause !== undefined, closed: closed.signal })
  return {
    memory: new ScopedMemory(
      memory,
      (_space: Space) => ALL,
      () => pause,
    ),
    setPaused: (now) => {
      pause = now ? {} : undefined
    },
    close: async () => closed.abort(),
  }
})
