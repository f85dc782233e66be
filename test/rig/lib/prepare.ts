import { busyInitrd } from './busy.js'
import { kernel } from './kernels.js'
import { rootkit } from './rootkit.js'
import type { RigOptions } from './types.js'

/**
 * Makes what the VMs of the demo and the tests need: the rootkit and the busy guest's root. About a minute the first time,
 * nothing after; part of the set-up, so that no step of a demo waits for it.
 */
export async function prepare(options: RigOptions = {}): Promise<void> {
  const linux = await kernel('6.1', options)
  await rootkit(linux, options)
  await busyInitrd(linux, options)
}
