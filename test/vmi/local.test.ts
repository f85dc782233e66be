import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LocalMemory } from '../../src/vmi/local.js'
import { memoryConformance } from '../conformance/memory.js'

memoryConformance('LocalMemory over a file', async ({ ram }) => {
  const folder = await mkdtemp(join(tmpdir(), 'cloudapp-local-'))
  const path = join(folder, 'ram')
  await writeFile(path, ram)
  let paused = false
  let generation = 0
  const pause = { paused: () => paused, generation: () => generation }
  const memory = LocalMemory.open({ path, writable: true, pause })
  return {
    memory,
    setPaused: (now) => {
      if (!now) generation++
      paused = now
    },
    close: async () => {
      memory.close()
      await rm(folder, { recursive: true })
    },
  }
})
