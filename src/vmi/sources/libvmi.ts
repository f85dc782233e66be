import { basename } from 'node:path'
import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked, loadShim } from '../../native/shim.js'
import { checkOptions } from '../../options.js'
import type { VcpuReader, VcpuRegisters } from '../guest.js'
import { LocalMemory } from '../local.js'
import { invalid } from '../local-check.js'
import { LocalVm } from './local-vm.js'

export interface LibvmiOptions {
  readonly signal?: AbortSignal
  /** The path of LibVMI; by default what `CLOUDAPP_LIBVMI` names, else the loader's `libvmi.so.0`. */
  readonly library?: string
}

const OPTIONS = ['signal', 'library'] as const

/** enum ca_libvmi_kind (cloudapp_libvmi.h). */
const FILE = 0
const XEN_NAME = 1
const XEN_ID = 2

/** CA_LIBVMI_VCPU_WORDS. */
const WORDS = 14

/** The order is that of ca_libvmi_vcpu; `idtLimit` is apart, as it is a number. */
const NAMES = [
  ...(['rip', 'rsp', 'rflags', 'cr0', 'cr3', 'cr4', 'efer', 'gsBase', 'kernelGsBase'] as const),
  ...(['idtBase', 'idtLimit', 'gdtBase', 'lstar'] as const),
]

/**
 * Opens a Xen domain or a file of physical memory through LibVMI, where it is installed. It is there for comparison and for
 * hosts whose tools rest on it; `xen:` and `raw:` do the same faster and without these side effects, seen with LibVMI of
 * January 2026:
 *
 * - For a Xen domain it raises the domain's memory limit to the highest there is, and on closing sets one that is 1024 times
 *   too large. It needs the privilege for that.
 * - A page the domain gives back (ballooning) reads as it last was; `memory.invalidate()` drops LibVMI's caches.
 * - It talks on standard output and error. While a call is inside it, both lead elsewhere for the whole process, so what
 *   another thread writes to them in that moment is lost.
 * - It is one LibVMI for a process, and one thread at a time; calls wait for one another.
 * - A file must not be cut short while it is open.
 *
 * LibVMI is asked for physical pages and registers only: page tables are walked here, so 5-level paging works, and its cache of
 * translations is not used. Memory is read only, nothing counts as consistent, and there is no `pause`: a pause of LibVMI
 * outlives a process that dies. The identity is that of a raw file (see {@link openRaw}): no right can be granted over it.
 *
 * @param target `xen:NAME`, `xen:NUMBER` or `file:PATH`. A domain whose name is a number goes by its own number.
 * @returns The VM; the caller closes it.
 * @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` (no LibVMI, or one of another ABI), `ERR_CLOUDAPP_SOURCE` with the end of
 *   what LibVMI said, `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_ABORTED`.
 */
export async function openLibvmi(target: string, options: LibvmiOptions = {}): Promise<LocalVm> {
  checkOptions('openLibvmi', options, OPTIONS)
  const { signal, library = process.env.CLOUDAPP_LIBVMI || 'libvmi.so.0' } = options
  if (library === '' || library.includes('\0')) throw invalid('library must name a file')
  const [, kind, what] = /^(xen|file):([^\0]+)$/s.exec(target) ?? []
  if (kind === undefined || what === undefined)
    throw invalid(`'${target}' names no target: use xen:DOMAIN or file:PATH`)
  if (signal?.aborted === true) {
    throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'opening the VM was aborted', { cause: signal.reason })
  }
  const shim = loadShim()
  const number = kind === 'file' ? FILE : /^\d+$/.test(what) ? XEN_ID : XEN_NAME
  const handle = checked(shim, shim.ca_libvmi_open(Buffer.from(`${library}\0`), number, Buffer.from(`${what}\0`)))
  const identity = {
    name: kind === 'file' ? basename(what) : what,
    uuid: '00000000-0000-0000-0000-000000000000',
    bootNonce: '0'.repeat(32),
  }
  const memory = LocalMemory.over(shim, handle, {})
  return new LocalVm({ identity, memory, ...(kind === 'file' ? {} : { vcpus: new LibvmiVcpus(shim, handle) }) })
}

class LibvmiVcpus implements VcpuReader {
  readonly #shim: Shim
  readonly #handle: number

  constructor(shim: Shim, handle: number) {
    this.#shim = shim
    this.#handle = handle
  }

  async registers(options: { readonly signal?: AbortSignal } = {}): Promise<VcpuRegisters[]> {
    const count = checked(this.#shim, this.#shim.ca_libvmi_vcpus(this.#handle))
    const words = new BigUint64Array(WORDS)
    const vcpus: VcpuRegisters[] = []
    for (let index = 0; index < count; index++) {
      if (options.signal?.aborted === true) {
        throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'reading the registers was aborted', {
          cause: options.signal.reason,
        })
      }
      checked(this.#shim, this.#shim.ca_libvmi_vcpu(this.#handle, index, words))
      vcpus.push(registersOf(index, words))
    }
    return vcpus
  }
}

function registersOf(index: number, words: BigUint64Array): VcpuRegisters {
  const there = words[WORDS - 1] ?? 0n
  const known: Record<string, bigint | number> = {}
  const missing: Record<string, string> = {}
  for (const [i, name] of NAMES.entries()) {
    const value = words[i] ?? 0n
    if (((there >> BigInt(i)) & 1n) === 0n) missing[name] = 'LibVMI does not give it'
    else known[name] = name === 'idtLimit' ? Number(value) : value
  }
  return { index, ...known, ...(Object.keys(missing).length === 0 ? {} : { missing }) }
}
