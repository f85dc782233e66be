import { CloudAppError } from '../../errors.js'
import { profileError } from './errors.js'
import type { KernelProfile } from './profile.js'
import type { GuestReader } from './read.js'

/**
 * Addresses of a per-CPU variable: `__per_cpu_offset[cpu]` plus its value in kallsyms, which is the distance from the
 * start of the per-CPU area before Linux 6.15, and since then an address whose area is taken off in the offset.
 * @throws ERR_CLOUDAPP_INVALID_ARGUMENT for a CPU number the kernel does not have; ERR_CLOUDAPP_PROFILE
 */
export async function perCpuAddress(
  linux: GuestReader & { readonly profile: KernelProfile },
  value: bigint,
  cpus?: readonly number[],
): Promise<bigint[]> {
  const { profile } = linux
  const wanted = cpus ?? Array.from({ length: profile.boot.cpus }, (_, cpu) => cpu)
  for (const cpu of wanted)
    if (!Number.isInteger(cpu) || cpu < 0 || cpu >= profile.boot.cpus)
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `no CPU ${cpu}: the kernel has ${profile.boot.cpus}`)
  const table = profile.trySymbol('__per_cpu_offset')
  if (table === undefined) {
    // A kernel built for one processor keeps per-CPU variables like any others.
    if (profile.boot.cpus === 1) return wanted.map(() => value)
    throw profileError('__per_cpu_offset', 'the kernel names no table of per-CPU offsets')
  }
  const offsets = await linux.readPointers(wanted.map((cpu) => table + BigInt(8 * cpu)))
  return offsets.map((offset, i) => {
    if (offset === undefined) throw profileError('__per_cpu_offset', `entry ${wanted[i]} can not be read`)
    return BigInt.asUintN(64, offset + value)
  })
}
