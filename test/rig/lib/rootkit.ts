import { copyFileSync, readdirSync } from 'node:fs'
import path from 'node:path'
import { cached, fileKey, keyOf, projectRoot } from './cache.js'
import { type Kernel, kernelHeaders } from './kernels.js'
import { run } from './process.js'
import type { RigOptions } from './types.js'

/** One switch per technique; see examples/rootkit/README.md. */
export interface RootkitOptions {
  /** Processes to hide. */
  readonly hidePids?: readonly number[]
  /** Take them off the task list; on unless false. */
  readonly unlinkTask?: boolean
  readonly unhashIdr?: boolean
  readonly hookFtrace?: boolean
  readonly hookPatch?: boolean
  readonly hideModule?: boolean
  readonly hookIdt?: boolean
  readonly hookSct?: boolean
  readonly hookKprobe?: boolean
  readonly hookLstar?: boolean
}

/** The rootkit's name in the module list, when it is there. */
export const ROOTKIT = 'shade'

/** Builds a kernel module out of a folder with a Kbuild file, for a kernel; cached. Gives the .ko file. */
export async function kernelModule(source: string, kernel: Kernel, options: RigOptions = {}): Promise<string> {
  const files = readdirSync(source).filter((name) => /^Kbuild$|\.[ch]$/.test(name))
  const headers = await kernelHeaders(kernel, options)
  const key = keyOf(kernel.release, fileKey(kernel.vmlinuz), ...files.map((name) => fileKey(path.join(source, name))))
  const folder = await cached(
    `module-${path.basename(source)}`,
    key,
    async (into) => {
      options.progress?.(`building ${path.basename(source)} against the headers of Linux ${kernel.release}`)
      for (const name of files) copyFileSync(path.join(source, name), path.join(into, name))
      // Its types (BTF) would take pahole, in the version the kernel was built with; nothing looks for them.
      await run('make', ['-C', headers, `M=${into}`, 'CONFIG_DEBUG_INFO_BTF_MODULES=', 'modules'], options)
    },
    options,
  )
  const built = readdirSync(folder).find((name) => name.endsWith('.ko'))
  if (!built) throw new Error(`${source} gave no module`)
  return path.join(folder, built)
}

/** Builds examples/rootkit for a kernel; cached. Gives the .ko file. */
export const rootkit = (kernel: Kernel, options: RigOptions = {}): Promise<string> =>
  kernelModule(path.join(projectRoot, 'examples/rootkit'), kernel, options)

/** The parameters for insmod. */
export function rootkitParameters(options: RootkitOptions): string {
  const { hidePids = [], ...switches } = options
  const words = Object.entries(switches)
    .filter(([, on]) => on !== undefined)
    .map(([name, on]) => `${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}=${on ? 1 : 0}`)
  if (hidePids.length > 0) words.unshift(`hide_pid=${hidePids.join(',')}`)
  return words.join(' ')
}
