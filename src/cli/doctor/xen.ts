import { constants, existsSync, readdirSync, readFileSync } from 'node:fs'
import { loadShim } from '../../native/shim.js'
import { listDomains } from '../../vmi/sources/xen-domains.js'
import { type Check, missing, ok, type SourceVerdict } from './check.js'
import { mayUse } from './host.js'

// Linux: drivers/xen/{privcmd,evtchn,gntdev,gntalloc}.c and xenfs.
const DEVICES = ['privcmd', 'evtchn', 'gntdev', 'gntalloc'] as const
// Debian's libxenmisc4.17 and its dependencies; the number is the ABI's.
const LIBRARIES = ['libxenctrl', 'libxenforeignmemory', 'libxenstore', 'libxenevtchn', 'libxengnttab'] as const
const FOLDERS = ['/usr/lib/x86_64-linux-gnu', '/usr/lib64', '/usr/lib', '/usr/local/lib'] as const

function text(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch {
    // Absent or closed to us: either way there is nothing to report from it.
    return undefined
  }
}

/** Whether the `xen:` source can be used: asks Xen for its domains, as the source does. */
export function xenVerdict(): SourceVerdict {
  try {
    const guests = listDomains(loadShim()).filter(({ domid, hvm }) => domid !== 0 && hvm)
    return { kind: 'xen', usable: true, why: `Xen answers; ${guests.length} HVM or PVH guests run` }
  } catch (error) {
    return { kind: 'xen', usable: false, why: error instanceof Error ? error.message : String(error) }
  }
}

/** What this host is to Xen. */
export function checkXen(root = ''): Check[] {
  const type = text(`${root}/sys/hypervisor/type`)
  if (type !== 'xen' && !existsSync(`${root}/proc/xen/capabilities`)) {
    return [
      missing(
        'xen',
        'this host does not run on Xen',
        'boot Debian with xen-hypervisor-4.17-amd64 to use Xen; QEMU and files need none',
      ),
    ]
  }
  const role = text(`${root}/proc/xen/capabilities`)?.includes('control_d') ? 'dom0' : 'domU'
  return [role === 'dom0' ? ok('xen', role) : guest(), devices(root), libraries(root)]
}

/**
 * In a guest, xen-privcmd with the fix of XSA-482 passes no hypercall on, whatever Xen itself would allow; maps go through for
 * the one domain that xenstore names as this one's target.
 */
function guest(): Check {
  return missing(
    'xen',
    'domU: /dev/xen/privcmd lets a guest ask nothing about others (XSA-482)',
    'run the broker in dom0; a guest is served over its socket',
  )
}

function devices(root: string): Check {
  const absent = DEVICES.filter((name) => !existsSync(`${root}/dev/xen/${name}`))
  const closed = DEVICES.filter(
    (name) => !absent.includes(name) && !mayUse(`${root}/dev/xen/${name}`, constants.R_OK | constants.W_OK),
  )
  if (absent.length > 0) {
    const modules = absent.map((name) => `xen-${name}`).join(' ')
    return missing('xen devices', `no /dev/xen/${absent.join(', no /dev/xen/')}`, `modprobe -a ${modules}`)
  }
  return closed.length > 0
    ? missing('xen devices', `no permission on ${closed.map((name) => `/dev/xen/${name}`).join(', ')}`, 'run as root')
    : ok('xen devices', DEVICES.map((name) => `/dev/xen/${name}`).join(', '))
}

function libraries(root: string): Check {
  const files = FOLDERS.flatMap((folder) => {
    try {
      return readdirSync(root + folder)
    } catch {
      // Not every distribution has every folder.
      return []
    }
  })
  const absent = LIBRARIES.filter((library) => !files.some((file) => file.startsWith(`${library}.so`)))
  return absent.length > 0
    ? missing(
        'xen libraries',
        `no ${absent.join(', no ')}`,
        'apt-get install xen-utils-4.17 (the version of the running hypervisor)',
      )
    : ok('xen libraries', LIBRARIES.join(', '))
}
