import { loadShim } from '../../native/shim.js'
import { openXen } from '../../vmi/sources/xen.js'
import { listDomains } from '../../vmi/sources/xen-domains.js'
import { type Check, missing, ok } from './check.js'

const NAME = 'xen events'
const BREAKPOINTS = { int3: 'INT3', descriptor: 'a descriptor-table instruction (INT3 does not leave a guest here)' }

/** What Xen traps on this host: it says so of a guest only. */
export async function checkEvents(): Promise<Check[]> {
  const guest = anyGuest()
  if (guest === undefined) return []
  if (guest === 'none')
    return [missing(NAME, 'no HVM or PVH guest runs that could be asked for', 'run doctor beside one')]
  try {
    await using vm = await openXen(String(guest))
    const support = await vm.events?.support()
    if (support === undefined) throw new Error('the event agent is not in this package')
    const { traps, breakpoints } = support
    return [
      ok(NAME, `${traps.join(', ')}${breakpoints === undefined ? '' : `; breakpoints by ${BREAKPOINTS[breakpoints]}`}`),
    ]
  } catch (error) {
    return [missing(NAME, error instanceof Error ? error.message : String(error), 'see docs/events.md')]
  }
}

function anyGuest(): number | 'none' | undefined {
  try {
    const guests = listDomains(loadShim()).filter(({ domid, hvm, dying }) => domid !== 0 && hvm && !dying)
    return guests[0]?.domid ?? 'none'
  } catch {
    // No Xen, or one that answers nothing: other checks say why.
    return undefined
  }
}
