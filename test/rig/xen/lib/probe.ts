import path from 'node:path'
import { cached, fileKey, keyOf, projectRoot } from '../../lib/cache.js'
import { run } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'

/** test/rig/guest/NAME.c for a guest without libraries. Cached. */
export async function guestProgram(name: 'map' | 'traps', options: RigOptions = {}): Promise<string> {
  const source = path.join(projectRoot, 'test/rig/guest', `${name}.c`)
  const folder = await cached(
    `${name}-program`,
    keyOf(fileKey(source)),
    async (into) => {
      await run('gcc', ['-O1', '-Wall', '-Wextra', '-Werror', '-static', '-o', path.join(into, name), source], options)
    },
    options,
  )
  return path.join(folder, name)
}
