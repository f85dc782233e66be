import { CloudAppError } from '../../src/errors.js'
import { BufferMemory } from '../../src/testing/index.js'
import { memoryConformance } from '../conformance/memory.js'

memoryConformance('a buffer', async (image) => {
  const end = new AbortController()
  let paused = false
  const memory = new BufferMemory(image.ram, { paused: () => paused, closed: end.signal })
  return {
    memory,
    setPaused: (now) => {
      paused = now
    },
    close: async () => end.abort(new CloudAppError('ERR_CLOUDAPP_CLOSED', 'closed')),
  }
})
