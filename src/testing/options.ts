import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import type { BuildOptions } from './kernel/build.js'
import type { ModuleSpec } from './kernel/modules.js'
import { kernelVersion } from './kernel/shapes.js'
import type { TaskSpec } from './kernel/tasks.js'

export interface SyntheticGuestOptions {
  /** `uname -r`; its major and minor number decide on the shape of structures and tables. `6.1.0-test` by default. */
  readonly release?: string
  /** Draws addresses, field offsets and names: another seed is another kernel. 1 by default. */
  readonly seed?: number
  /** Bytes of RAM, a multiple of 2 MiB from 16 MiB to 1 GiB; 32 MiB by default. */
  readonly memory?: number
  /** Levels of the page tables; 5 by default. */
  readonly levels?: 4 | 5
  /** Page size of the direct map; `2M` by default. */
  readonly pages?: '4K' | '2M' | '1G'
  /** False puts everything where it lies without KASLR. */
  readonly kaslr?: boolean
  /** 2 by default, at most 64. */
  readonly cpus?: number
  /** A small server's by default. pid 1 and 2 are added where they are missing. */
  readonly tasks?: readonly TaskSpec[]
  /** Six by default, in the order they are loaded. */
  readonly modules?: readonly ModuleSpec[]
  /** Functions without meaning in the kernel's text, beside some 1,100 of system calls; 1,500 by default. */
  readonly functions?: number
  /** Adds what a busy system has: a traced function, a kprobe, BPF programs. False by default. */
  readonly busy?: boolean
  /** False leaves the kernel's types out. */
  readonly btf?: boolean
  /** False leaves VMCOREINFO out. */
  readonly vmcoreinfo?: boolean
  /** Whether VMCOREINFO names the kallsyms tables; by the release (6.0 and later) by default. */
  readonly kallsymsNamed?: boolean
}

const KNOWN = [
  'release',
  'seed',
  'memory',
  'levels',
  'pages',
  'kaslr',
  'cpus',
  'tasks',
  'modules',
  'functions',
  'busy',
  'btf',
  'vmcoreinfo',
  'kallsymsNamed',
] as const

const MIB = 1 << 20
const PAGE_SIZES = { '4K': 0x1000, '2M': 0x20_0000, '1G': 0x4000_0000 } as const

function refuse(message: string): never {
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', message)
}

/** Checks what was asked for and chooses the rest. @throws ERR_CLOUDAPP_INVALID_ARGUMENT, ERR_CLOUDAPP_UNKNOWN_OPTION */
export function buildOptions(options: SyntheticGuestOptions): BuildOptions {
  checkOptions('syntheticGuest', options, KNOWN)
  const { release = '6.1.0-test', seed = 1, memory = 32 * MIB, levels = 5, pages = '2M', cpus = 2 } = options
  const version = kernelVersion(release)
  if (version === undefined) refuse(`release '${release}' does not start with a major and a minor number`)
  if (version.version < 505 || version.version > 799) refuse(`releases 5.5 to 7.99 are known, not '${release}'`)
  if (!Number.isSafeInteger(seed)) refuse('seed must be an integer')
  if (!Number.isSafeInteger(memory) || memory % (2 * MIB) !== 0 || memory < 16 * MIB || memory > 1024 * MIB) {
    refuse(`memory must be a multiple of 2 MiB from 16 MiB to 1 GiB, not ${memory}`)
  }
  if (levels !== 4 && levels !== 5) refuse('levels must be 4 or 5')
  const directPage = PAGE_SIZES[pages]
  if (directPage === undefined) refuse(`pages must be one of ${Object.keys(PAGE_SIZES).join(', ')}`)
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > 64) refuse('cpus must be an integer from 1 to 64')
  const functions = options.functions ?? 1500
  if (!Number.isInteger(functions) || functions < 0 || functions > 8000) refuse('functions must be from 0 to 8000')
  return {
    ...version,
    seed,
    memory,
    levels,
    kaslr: options.kaslr ?? true,
    directPage,
    cpus,
    functions,
    btf: options.btf ?? true,
    vmcoreinfo: options.vmcoreinfo ?? true,
    named: options.kallsymsNamed ?? version.version >= 600,
  }
}
