import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import { invalid } from '../local-check.js'
import type { LocalVm } from './local-vm.js'
import { openRaw } from './raw.js'

const SCHEMES = ['raw', 'elf', 'lime', 'qemu', 'xen', 'libvmi'] as const
const KNOWN = 'raw:PATH, elf:PATH, lime:PATH, qemu:SOCKET, xen:DOMAIN or libvmi:KIND:TARGET'

/**
 * Splits the URI of a source. Nothing is opened.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` for a URI of no known source
 */
export function parseSource(uri: string): { readonly scheme: (typeof SCHEMES)[number]; readonly place: string } {
  const colon = uri.indexOf(':')
  const name = uri.slice(0, Math.max(colon, 0))
  const place = uri.slice(colon + 1)
  if (colon <= 0 || place === '') throw invalid(`'${uri}' names no source: use ${KNOWN}`)
  const scheme = SCHEMES.find((known) => known === name)
  if (scheme === undefined) throw invalid(`the source '${name}' is not known: use ${KNOWN}`)
  return { scheme, place }
}

/**
 * Opens a VM by the URI of its source: `raw:PATH` (a file of physical memory), `elf:PATH` (a core file of QEMU's
 * dump-guest-memory or of `xl dump-core`), `lime:PATH` (a LiME file), `qemu:SOCKET` (the QMP socket of a running QEMU),
 * `xen:DOMAIN` (name, number or uuid of a domain of the Xen host this is the control domain of), or `libvmi:xen:DOMAIN` and
 * `libvmi:file:PATH` (the same through LibVMI, which has side effects: see {@link openLibvmi}).
 *
 * @returns The VM; the caller closes it.
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` for a URI of no known source, and what the source throws.
 */
export async function openVm(uri: string, options: { readonly signal?: AbortSignal } = {}): Promise<LocalVm> {
  checkOptions('openVm', options, ['signal'])
  if (options.signal?.aborted === true) {
    throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'opening the VM was aborted', { cause: options.signal.reason })
  }
  const { scheme, place } = parseSource(uri)
  switch (scheme) {
    case 'raw':
      return openRaw(place)
    case 'elf': {
      const { openElf } = await import('./elf.js')
      return openElf(place, options)
    }
    case 'lime': {
      const { openLime } = await import('./lime.js')
      return openLime(place, options)
    }
    case 'qemu': {
      const { openQemu } = await import('./qemu.js')
      return openQemu(place, options)
    }
    case 'xen': {
      const { openXen } = await import('./xen.js')
      return openXen(place, options)
    }
    case 'libvmi': {
      const { openLibvmi } = await import('./libvmi.js')
      return openLibvmi(place, options)
    }
  }
}
