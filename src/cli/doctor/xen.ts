import { constants, existsSync, readdirSync, readFileSync } from 'node:fs'
import { loadShim } from '../../native/shim.js'
import { GRANT_PAGE } from '../../transport/xen/grant-table.js'
import { VCHAN_RING } from '../../transport/xen/vchan.js'
import { listDomains, mayAskXen } from '../../vmi/sources/xen-domains.js'
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

/** What this host is to Xen. `asks`: whether Xen answers this domain at all. */
export function checkXen(root = '', asks = () => mayAskXen(loadShim())): Check[] {
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
  return [role === 'dom0' ? ok('xen', role) : guest(root, asks), devices(root), grants(root), libraries(root)]
}

const BROKER = 'run the broker in dom0, which serves a guest over its socket'

/**
 * What a guest may ask Xen. Since the fix of XSA-482, xen-privcmd of a guest passes on what is about one domain, which xenstore
 * names as `target` before the module loads, and nothing without; loaded with `unrestricted=1`, or of before, it passes on
 * everything, and Xen decides (drivers/xen/privcmd.c). The parameter is in no file: so it is tried.
 */
function guest(root: string, asks: () => boolean): Check {
  if (!existsSync(`${root}/sys/module/xen_privcmd`)) {
    return missing('xen', 'domU: xen-privcmd is not loaded, so nothing can be asked about others', BROKER)
  }
  const asked = tried(asks)
  if (asked instanceof Error) return missing('xen', `domU; what it may ask can not be tried: ${asked.message}`, BROKER)
  if (asked) {
    return ok('xen', 'domU, xen-privcmd unrestricted: Xen decides what it may (FLASK, where Xen has it)')
  }
  return missing(
    'xen',
    'domU: its kernel restricts /dev/xen/privcmd to a target domain, if it has one (XSA-482)',
    `${BROKER}; or, where a FLASK policy confines this domain: modprobe -r xen-privcmd && modprobe xen-privcmd unrestricted=1`,
  )
}

function tried(asks: () => boolean): boolean | Error {
  try {
    return asks()
  } catch (error) {
    return error instanceof Error ? error : new Error(String(error))
  }
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

/** What a domain may share with others at a time: each vchan that is served takes its rings' pages and one more. */
function grants(root: string): Check {
  const parameter = '/sys/module/xen_gntalloc/parameters/limit'
  const limit = Number(text(root + parameter))
  if (!Number.isInteger(limit) || limit <= 0) {
    return missing('xen grants', 'gntalloc is not loaded: no vchan can be served here', 'modprobe xen-gntalloc')
  }
  const pages = (2 * VCHAN_RING) / GRANT_PAGE + 1
  return ok(
    'xen grants',
    `${limit} for all processes (${parameter}): ${Math.floor(limit / pages)} vchans of 64 KiB rings`,
  )
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
