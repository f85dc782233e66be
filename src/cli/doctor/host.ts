import { accessSync, constants, existsSync, statSync } from 'node:fs'
import path from 'node:path'
import { bad, type Check, missing, ok } from './check.js'

const LEAST_NODE = [20, 19] as const

/** Node itself: version, platform, C library. */
export function checkNode(version = process.versions.node): Check {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  const enough = major > LEAST_NODE[0] || (major === LEAST_NODE[0] && minor >= LEAST_NODE[1])
  const found = `Node ${version} at ${process.execPath}`
  return enough ? ok('node', found) : bad('node', found, `install Node ${LEAST_NODE.join('.')} or later`)
}

export function checkPlatform(): Check {
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } }
  const glibc = report.header?.glibcVersionRuntime
  const found = `${process.platform} ${process.arch}${glibc ? `, glibc ${glibc}` : ', no glibc'}`
  return process.platform === 'linux' && process.arch === 'x64' && glibc
    ? ok('platform', found)
    : bad('platform', found, 'run on Linux x86-64 with glibc (Debian 12 is what is tested)')
}

/** The first executable file of this name on the PATH. */
export function onPath(program: string, searched = process.env.PATH ?? ''): string | undefined {
  return searched
    .split(path.delimiter)
    .filter((folder) => folder !== '')
    .map((folder) => path.join(folder, program))
    .find((file) => statSync(file, { throwIfNoEntry: false })?.isFile() && mayUse(file, constants.X_OK))
}

export function mayUse(file: string, mode: number): boolean {
  try {
    accessSync(file, mode)
    return true
  } catch {
    // Not there or not allowed: the caller asked just this.
    return false
  }
}

/** QEMU runs the VMs of the `qemu:` source; one that runs elsewhere on this host does as well. */
export function checkQemu(): Check {
  const file = onPath('qemu-system-x86_64')
  return file
    ? ok('qemu', file)
    : missing('qemu', 'qemu-system-x86_64 is not on the PATH', 'apt-get install qemu-system-x86')
}

/** Where kernel profiles are kept: the folder itself, or the nearest parent that exists, must be writable. */
export function checkCache(folder: string): Check {
  let nearest = folder
  while (!existsSync(nearest) && path.dirname(nearest) !== nearest) nearest = path.dirname(nearest)
  return mayUse(nearest, constants.W_OK | constants.X_OK)
    ? ok('cache', `${folder}${nearest === folder ? '' : ' (made when first used)'}`)
    : bad(
        'cache',
        `${folder} can not be written`,
        `make ${nearest} writable, or set XDG_CACHE_HOME to a folder that is`,
      )
}

/** Who runs this: RAM files and QMP sockets usually belong to root. */
export function checkPermissions(): Check {
  const uid = process.getuid?.() ?? -1
  return uid === 0
    ? ok('permissions', 'root')
    : missing(
        'permissions',
        `uid ${uid}: VMs of other users can not be opened`,
        'run as root or as the user that runs the VM, or ask a broker that does (`cloudapp broker`)',
      )
}
