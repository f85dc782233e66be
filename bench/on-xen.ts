import { bootXen, type XenHost } from '../test/rig/xen/lib/host.js'
import { losses } from '../test/rig/xen/lib/lost.js'

/** How often a measurement is begun again. */
const AGAIN = 2

/**
 * Measures on an emulated Xen host of its own. Emulation loses a guest now and then (test/rig/xen/lib/lost.ts): what failed
 * while it did is begun again, on another host.
 */
export async function onXen<T>(progress: (message: string) => void, measure: (xen: XenHost) => Promise<T>): Promise<T> {
  for (let again = AGAIN; ; again--) {
    await using xen = await bootXen({ progress })
    const before = losses()
    try {
      return await measure(xen)
    } catch (error) {
      if (again === 0 || losses() === before) throw error
      progress(`measured again on another host: ${losses()}`)
    }
  }
}
