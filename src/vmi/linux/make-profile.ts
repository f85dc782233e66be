import { checkOptions } from '../../options.js'
import type { KernelProfileParts, VcpuReader } from '../guest.js'
import type { GuestMemory } from '../memory.js'
import { profileError } from './errors.js'
import { KernelSearch } from './kernel-search.js'
import { KernelProfile } from './profile.js'

export interface MakeProfileOptions {
  /** Registers, where the source has them: they tell the running kernel from what an earlier boot left in RAM. */
  readonly vcpus?: VcpuReader | undefined
  /** Directory of cached profiles; false for none. By default `$CLOUDAPP_CACHE`, else the user's cache directory. */
  readonly cache?: string | false
  readonly signal?: AbortSignal
  /** Milliseconds for the parser process; 30,000 by default. */
  readonly deadline?: number
  /** Another parser program; for tests of a parser that misbehaves. */
  readonly parser?: string
}

/**
 * Makes the kernel profile of the VM whose memory this is; what {@link GuestVm.kernel} of a source returns. Looks first
 * for kernels in the cache (by their build id), then for VMCOREINFO, then for kallsyms by its shape. The guest's tables
 * are parsed by a process without rights.
 * @throws ERR_CLOUDAPP_PROFILE naming the part that is missing and where it was looked for; ERR_CLOUDAPP_ABORTED
 */
export async function makeKernelProfile(
  memory: GuestMemory,
  options: MakeProfileOptions = {},
): Promise<KernelProfileParts> {
  checkOptions('makeKernelProfile', options, ['vcpus', 'cache', 'signal', 'deadline', 'parser'])
  const { image, boot } = await new KernelSearch(memory, options).find()
  const profile = new KernelProfile(image.facts, boot)
  const sections = new Map<string, Promise<Uint8Array>>()

  const section = (name: string): Promise<Uint8Array> => {
    let bytes = sections.get(name)
    if (bytes === undefined) {
      bytes = image.section(name).then((found) => found ?? again(name))
      bytes.catch(() => sections.delete(name))
      sections.set(name, bytes)
    }
    return bytes
  }

  /** Makes a section anew when the cached one is gone or damaged. */
  const again = async (name: string): Promise<Uint8Array> => {
    // Not under the caller's signal: it was for making the profile, and this is a later call.
    const { signal: _, ...rest } = options
    const made = await new KernelSearch(memory, { ...rest, cache: false }).parser.parseVirtual(profile.space, undefined)
    const bytes = made.sections.get(name)
    const { release, symbols } = made.image.facts
    if (bytes === undefined || release !== image.facts.release || symbols.init_task !== image.facts.symbols.init_task)
      throw profileError(name, `the kernel is not ${image.facts.release} any more`)
    return bytes
  }

  return { header: profile.encode(), section }
}
