import path from 'node:path'
import { afterAll, beforeEach, expect } from 'vitest'
import type { RigOptions } from '../../lib/types.js'
import { bootXen, type XenHost } from './host.js'
import { losses, lostSoFar, noteLost } from './lost.js'

/** With CLOUDAPP_RIG_VERBOSE, the long steps of the rig say what they do. */
export const verbose: RigOptions = process.env.CLOUDAPP_RIG_VERBOSE
  ? { progress: (message) => void process.stderr.write(`${message}\n`) }
  : {}

// The test files of the Xen suite run one after the other in one process, and this module stays: one boot for all of
// them. The host ends with the process. What a file creates in it, it ends, or names so that no other file takes the name.
let host: Promise<XenHost> | undefined

/** The host the test files of the suite share; for `beforeAll`. */
export async function sharedXen(): Promise<XenHost> {
  host ??= bootXen(verbose)
  const booted = await host
  if (!booted.silent) return booted
  // What is left of it says nothing about other files.
  await booted.close()
  host = bootXen(verbose)
  return host
}

/** Notes if a guest ends in a triple fault, or dom0 falls silent, while this file runs. Called after the file's own hooks: it looks before they end the host. */
export function watchForLost(): void {
  const before = losses()
  afterAll(() => {
    if (losses() !== before) noteLost(path.relative(process.cwd(), expect.getState().testPath ?? ''))
  })
}

/** For a group of tests, with {@link remakeLost}: one that fails while a guest is lost is begun again. */
export const AFTER_LOSS = { retry: 2 }

/**
 * Before each test of the file, if a guest was lost since the one before: has `remake` look for what is gone and make it anew.
 * What a test creates itself, it first takes away.
 */
export function remakeLost(remake: () => Promise<void>): void {
  let before = lostSoFar()
  beforeEach(async ({ task }) => {
    const lost = lostSoFar() !== before
    before = lostSoFar()
    if (lost) await remake()
    else if ((task.result?.retryCount ?? 0) > 0)
      throw new Error('It failed, and no guest was lost: it is not begun again')
  }, 1_200_000)
}

/** Has each test of this file that fails show what the domains' consoles say; and {@link watchForLost}. */
export function showConsoles(): void {
  watchForLost()
  beforeEach(({ onTestFailed }) => {
    onTestFailed(async () => {
      const logs = (await host)?.logs() ?? Promise.resolve('no Xen host')
      process.stderr.write(`${await logs.catch((error) => String(error))}\n`)
    }, 240_000)
  })
}
