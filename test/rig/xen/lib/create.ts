import { readFileSync } from 'node:fs'
import { keyOf } from '../../lib/cache.js'
import { type GuestFile, initramfs } from '../../lib/initramfs.js'
import type { Kernel } from '../../lib/kernels.js'
import { parseSize, type RigOptions } from '../../lib/types.js'
import type { Dom0 } from './dom0.js'
import { consoleTail, disk, XenGuest } from './guest.js'
import { APP } from './payload.js'

export interface GuestOptions extends RigOptions {
  readonly name: string
  /** PVH: hardware page tables, no emulated devices. PV: page tables made through Xen. */
  readonly kind: 'pvh' | 'pv'
  /** Default 256M, with Node 512M. */
  readonly memory?: string | number
  /** Default 1. */
  readonly cpus?: number
  /**
   * Gives it what dom0 has: Debian's programs and libraries with Xen's (in /usr; its shell stays busybox, bash is there),
   * Node, and the package with the tests' programs in /app. All of it is read-only.
   */
  readonly node?: boolean
  /** Block devices of dom0 that it may write, as /dev/xvdd, xvde, ... */
  readonly disks?: readonly string[]
  /** Modules to load at boot, as `xen-evtchn`, `xen-gntdev`, `xen-gntalloc`, `xen-privcmd`, `xenfs`. */
  readonly modules?: readonly string[]
  /** Modules only to be there, as /lib/rig/NAME.ko. */
  readonly extraModules?: readonly string[]
  readonly files?: Readonly<Record<string, GuestFile>>
  /** Shell lines to run in the guest before it is ready. */
  readonly setup?: string
  /** Added to the kernel's command line. */
  readonly append?: string
  /** Lines added to the guest's configuration: xl.cfg(5). */
  readonly config?: string
  /** How long the guest may take until it is ready, default 300 s. */
  readonly timeoutMs?: number
}

// The agent of the rig opens a serial port, which these guests have not: their console takes its place. So the kernel
// must be silent on it.
const SETUP = `[ -d /proc/xen ] && mount -t xenfs xenfs /proc/xen 2>/dev/null
rm -f /dev/ttyS1; ln -s hvc0 /dev/ttyS1`

/** dom0's root and the package are disks of the guest: nothing is copied, and what is not read costs no memory. */
const NODE = {
  modules: ['xen-blkfront', 'crc32c_generic', 'ext4'],
  disks: [disk('/rig/guest-root', 'xvda', 'r'), disk('/rig/guest-app', 'xvdb', 'r')],
  setup: `until [ -e /dev/xvda ] && [ -e /dev/xvdb ]; do sleep 0.1; done
mkdir -p /rig/root ${APP} /usr /lib/x86_64-linux-gnu
mount -t ext4 -o ro /dev/xvda /rig/root
mount -t ext4 -o ro /dev/xvdb ${APP}
mount --bind /rig/root/usr /usr
mount --bind /usr/lib/x86_64-linux-gnu /lib/x86_64-linux-gnu
ln -s usr/lib64 /lib64
ln -s /rig/root/etc/ld.so.cache /etc/ld.so.cache`,
}

const disksOf = ({ node, disks = [] }: GuestOptions): string[] => [
  ...(node ? NODE.disks : []),
  ...disks.map((block, i) => disk(block, `xvd${String.fromCharCode(100 + i)}`, 'w')),
]

const config = (options: GuestOptions, ramdisk: string): string => `name = "${options.name}"
type = "${options.kind}"
kernel = "${APP}/vmlinuz"
ramdisk = "${ramdisk}"
extra = "console=hvc0 loglevel=1 panic=-1 ${options.append ?? ''}"
memory = ${parseSize(options.memory ?? (options.node ? '512M' : '256M')) / 2 ** 20}
vcpus = ${options.cpus ?? 1}
# An intercepted RDTSCP kills the guest: the emulated CPU does not say where the next instruction begins.
tsc_mode = "native"
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
disk = [ ${disksOf(options)
  .map((text) => `"${text}"`)
  .join(', ')} ]
${options.config ?? ''}
`

/** How often a guest is created until it comes up. */
const ATTEMPTS = 4

/**
 * Creates a guest and waits until its agent answers. Throws, with the end of its console, if it does not come up.
 *
 * The emulation now and then loses a guest (./lost.ts), a few of a hundred while Linux measures its clock by tens of thousands
 * of port reads, each of which leaves the guest. One that is gone before it was ready, without a word, is created again, and
 * that is told: nothing of ours runs by then.
 */
export async function createGuest(dom0: Dom0, kernel: Kernel, options: GuestOptions): Promise<XenGuest> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await createOnce(dom0, kernel, options)
    } catch (error) {
      if (!(error instanceof GoneEarly) || attempt === ATTEMPTS) throw error
      process.stderr.write(`rig: ${options.name} ended before it was ready; created again\n`)
    }
  }
}

/** The domain had ended, by itself and without a word on its console. */
class GoneEarly extends Error {}

async function createOnce(dom0: Dom0, kernel: Kernel, options: GuestOptions): Promise<XenGuest> {
  const { name, timeoutMs = 300_000 } = options
  if (!/^[a-z][a-z0-9-]{0,30}$/.test(name)) throw new Error(`'${name}' is no name for a guest`)
  const initrd = await initramfs({
    ...options,
    kernel,
    modules: [...(options.node ? NODE.modules : []), ...(options.modules ?? [])],
    extraModules: ['xen-blkfront', ...(options.extraModules ?? [])],
    setup: [options.node ? NODE.setup : '', options.setup ?? '', SETUP].join('\n'),
  })
  const ramdisk = `/tmp/initrd-${keyOf(initrd)}`
  const { status } = await dom0.run(`[ -e ${ramdisk} ]`, { check: false })
  if (status !== 0) await dom0.push(ramdisk, readFileSync(initrd))
  await dom0.push(`/tmp/${name}.cfg`, config(options, ramdisk))
  options.progress?.(`creating the ${options.kind.toUpperCase()} guest ${name}`)
  const log = `/var/log/xen/console/guest-${name}.log`
  try {
    await dom0.run(`rm -f ${log}; xl create -q /tmp/${name}.cfg`, { timeoutMs })
    // Sparing: what waits in dom0 runs on the CPUs the guest boots on.
    const wait = `n=0; until grep -q @ready ${log}; do n=$((n+1)); [ $((n % 20)) = 0 ] && ! xl domid ${name} && exit 1; sleep 0.5; done`
    const limit = Math.ceil(timeoutMs / 1000)
    await dom0.run(`timeout ${limit} sh -c '${wait}'`, { timeoutMs: timeoutMs + 30_000 })
    const domid = Number((await dom0.run(`xl domid ${name}`)).stdout)
    const facts = await dom0.run(`xenstore-read /local/domain/${domid}/console/tty /local/domain/${domid}/vm`)
    const [terminal = '', vm = ''] = facts.stdout.trim().split('\n')
    return new XenGuest(name, domid, vm.replace('/vm/', ''), dom0, terminal)
  } catch (error) {
    const said = await consoleTail(dom0, name)
    const silent = await dom0.run(
      `! xl domid ${name} && ! [ -s ${log} ] && grep -q 'has shut down, reason code 1 ' /var/log/xen/xl-${name}.log`,
      {
        check: false,
      },
    )
    await dom0.run(`xl destroy ${name}`, { check: false })
    const Kind = silent.status === 0 ? GoneEarly : Error
    throw new Kind(`${name} did not come up: ${(error as Error).message}\n${said}`, { cause: error })
  }
}
