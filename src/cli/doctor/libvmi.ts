import { CloudAppError } from '../../errors.js'
import { openLibvmi } from '../../vmi/sources/libvmi.js'
import type { SourceVerdict } from './check.js'

/** Whether the `libvmi:` source can be used: loads LibVMI, and has it open an empty file, which changes no VM. */
export async function libvmiVerdict(): Promise<SourceVerdict> {
  try {
    await using _ = await openLibvmi('file:/dev/null')
  } catch (error) {
    if (!CloudAppError.is(error) || error.code !== 'ERR_CLOUDAPP_SOURCE') {
      return { kind: 'libvmi', usable: false, why: error instanceof Error ? error.message : String(error) }
    }
  }
  return { kind: 'libvmi', usable: true, why: 'LibVMI loads; see docs/sources.md for what it does to a VM' }
}
