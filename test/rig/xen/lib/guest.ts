import { readFileSync } from 'node:fs'
import { keyOf } from '../../lib/cache.js'
import type { GuestOutput, GuestRunOptions } from '../../lib/guest.js'
import { type GuestFile, initramfs } from '../../lib/initramfs.js'
import type { Kernel } from '../../lib/kernels.js'
import { parseSize, type RigOptions } from '../../lib/types.js'
import type { Dom0 } from './host.js'
import { APP } from './payload.js'

export interface GuestOptions extends RigOptions {
  readonly name: string
  /** PVH: hardware page tables, no emulated devices. PV: page tables made through Xen. */
  readonly kind: 'pvh' | 'pv'
  /** Default 256M. */
  readonly memory?: string | number
  /** Default 1. */
  readonly cpus?: number
  readonly modules?: readonly string[]
  readonly files?: Readonly<Record<string, GuestFile>>
  /** Shell lines to run in the guest before it is ready. */
  readonly setup?: string
  /** Added to the kernel's command line. */
  readonly append?: string
  /** How long the guest may take until it is ready, default 300 s. */
  readonly timeoutMs?: number
}

/** A running guest; ends with its host at the latest. */
export class XenGuest {
  private nextId = 1

  constructor(
    readonly name: string,
    readonly domid: number,
    readonly uuid: string,
    private readonly dom0: Dom0,
    /** The guest's console, a terminal in dom0. */
    private readonly terminal: string,
  ) {}

  /** Where the product's `xen:` source finds it. */
  get uri(): string {
    return `xen:${this.name}`
  }

  /** Runs a script by the guest's shell. */
  async run(script: string, options: GuestRunOptions = {}): Promise<GuestOutput> {
    const { timeoutMs = 60_000, check = true } = options
    const id = String(this.nextId++)
    const encoded = Buffer.from(script).toString('base64')
    const ask = `timeout ${Math.ceil(timeoutMs / 1000)} /rig/ask ${this.terminal} ${id} ${encoded}`
    // The limit in dom0 comes first: it frees dom0's own channel.
    const { stdout, status: asked } = await this.dom0.run(ask, { timeoutMs: timeoutMs + 30_000, check: false })
    const [answered, status, out = '', err = ''] = stdout.trim().split(' ')
    const what = `'${script.slice(0, 200)}' in ${this.name}`
    if (answered !== id) {
      throw new Error(`No answer to ${what} in ${timeoutMs} ms (${asked})\n${await this.consoleTail()}`)
    }
    const text = (base64: string): string => Buffer.from(base64, 'base64').toString()
    const output = { status: Number(status), stdout: text(out), stderr: text(err) }
    if (check && output.status !== 0) {
      throw new Error(`${what} ended with ${output.status}\n${output.stderr}${output.stdout}`)
    }
    return output
  }

  /** The end of what the guest wrote on its console. */
  consoleTail(): Promise<string> {
    return consoleTail(this.dom0, this.name)
  }

  async destroy(): Promise<void> {
    await this.dom0.run(`xl destroy ${this.domid}`)
  }
}

async function consoleTail(dom0: Dom0, name: string): Promise<string> {
  const logs = `/var/log/xen/console/guest-${name}.log /var/log/xen/xl-${name}.log`
  return (await dom0.run(`tail -n 40 ${logs}`, { check: false })).stdout
}

// The agent of the rig opens a serial port, which these guests have not: their console takes its place. So the kernel
// must be silent on it.
const SETUP = 'rm -f /dev/ttyS1; ln -s hvc0 /dev/ttyS1'

const config = (options: GuestOptions, ramdisk: string): string => `name = "${options.name}"
type = "${options.kind}"
kernel = "${APP}/vmlinuz"
ramdisk = "${ramdisk}"
extra = "console=hvc0 loglevel=1 panic=-1 ${options.append ?? ''}"
memory = ${parseSize(options.memory ?? '256M') / 2 ** 20}
vcpus = ${options.cpus ?? 1}
# An intercepted RDTSCP kills the guest: the emulated CPU does not say where the next instruction begins.
tsc_mode = "native"
on_poweroff = "destroy"
on_reboot = "destroy"
on_crash = "destroy"
`

/** Creates a guest and waits until its agent answers. Throws, with the end of its console, if it does not come up. */
export async function createGuest(dom0: Dom0, kernel: Kernel, options: GuestOptions): Promise<XenGuest> {
  const { name, timeoutMs = 300_000 } = options
  if (!/^[a-z][a-z0-9-]{0,30}$/.test(name)) throw new Error(`'${name}' is no name for a guest`)
  const initrd = await initramfs({ ...options, kernel, setup: `${options.setup ?? ''}\n${SETUP}` })
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
    await dom0.run(`xl destroy ${name}`, { check: false })
    throw new Error(`${name} did not come up: ${(error as Error).message}\n${said}`, { cause: error })
  }
}
