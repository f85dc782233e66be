import path from 'node:path'
import { cached, fileKey, keyOf, projectRoot } from '../../lib/cache.js'
import { run } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'

const SOURCE = path.join(projectRoot, 'test/rig/guest/map.c')

/** test/rig/guest/map.c for a guest without libraries. Cached. */
export async function mapProgram(options: RigOptions = {}): Promise<string> {
  const folder = await cached(
    'map-program',
    keyOf(fileKey(SOURCE)),
    async (into) => {
      await run('gcc', ['-O1', '-Wall', '-Wextra', '-Werror', '-static', '-o', path.join(into, 'map'), SOURCE], options)
    },
    options,
  )
  return path.join(folder, 'map')
}
