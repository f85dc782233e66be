import type { GuestOutput, GuestRunOptions } from '../../lib/guest.js'
import { type Dom0, nodeLine } from './dom0.js'

/** A small file goes through the console, whose ring has 2 KiB; a larger one is worth a disk. */
const SMALL = 8 * 1024

/** A running guest; ends with its host at the latest. */
export class XenGuest {
  private nextId = 1
  private queue: Promise<unknown> = Promise.resolve()
  private mailbox: Promise<string> | undefined

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

  /** Runs a script by the guest's shell (busybox); one after the other. */
  run(script: string, options: GuestRunOptions = {}): Promise<GuestOutput> {
    const turn = this.queue.then(() => this.ask(script, options))
    this.queue = turn.catch(() => {})
    return turn
  }

  /** Runs a Node program of the package's folder, in a guest created with `node`. */
  node(args: readonly string[], options: GuestRunOptions = {}): Promise<GuestOutput> {
    return this.run(nodeLine(args), { timeoutMs: 180_000, ...options })
  }

  /** Writes a file. */
  async push(name: string, content: Uint8Array | string, mode = 0o644): Promise<void> {
    const bytes = Buffer.from(content)
    if (bytes.length > SMALL) return this.dom0.mailbox.push(this, await this.disk(), name, bytes, mode)
    await this.run(`echo '${bytes.toString('base64')}' | base64 -d > '${name}' && chmod ${mode.toString(8)} '${name}'`)
  }

  /** Reads a file. */
  async pull(name: string): Promise<Buffer> {
    const size = Number((await this.run(`stat -c %s '${name}'`)).stdout)
    if (size > SMALL) return this.dom0.mailbox.pull(this, await this.disk(), name)
    return Buffer.from((await this.run(`base64 -w0 '${name}'`)).stdout, 'base64')
  }

  /** The end of what the guest wrote on its console. */
  consoleTail(): Promise<string> {
    return consoleTail(this.dom0, this.name)
  }

  /** Whether it is there still: one that ends is destroyed. */
  async lives(): Promise<boolean> {
    const { stdout } = await this.dom0.run(`xl domid ${this.name}`, { check: false })
    return stdout.trim() === String(this.domid)
  }

  async destroy(): Promise<void> {
    await this.dom0.run(`xl destroy ${this.domid}`)
  }

  private async ask(script: string, options: GuestRunOptions): Promise<GuestOutput> {
    const { timeoutMs = 180_000, check = true } = options
    const id = String(this.nextId++)
    const encoded = Buffer.from(script).toString('base64')
    const ask = `exec /rig/agent ask ${this.terminal} ${id} ${Math.ceil(timeoutMs / 1000)} ${encoded}`
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

  /** The mailbox as a disk of this guest, attached when it is first needed. */
  private disk(): Promise<string> {
    this.mailbox ??= this.attach()
    return this.mailbox
  }

  private async attach(): Promise<string> {
    await this.run('[ -e /sys/bus/xen/drivers/vbd ] || insmod /lib/rig/xen_blkfront.ko')
    await this.dom0.run(`xl block-attach ${this.domid} '${disk('/rig/mailbox', 'xvdm', 'w')}'`)
    await this.run('n=0; until [ -e /dev/xvdm ]; do n=$((n+1)); [ $n -lt 500 ] || exit 1; sleep 0.1; done')
    return '/dev/xvdm'
  }
}

/** A disk of dom0 as one of a guest: xl-disk-configuration(5). */
export const disk = (target: string, name: string, access: 'r' | 'w'): string =>
  `format=raw,vdev=${name},access=${access},backendtype=phy,script=/rig/block,target=${target}`

/** The end of a guest's console, and of what xl wrote about it. */
export async function consoleTail(dom0: Dom0, name: string): Promise<string> {
  const logs = `/var/log/xen/console/guest-${name}.log /var/log/xen/xl-${name}.log`
  return (await dom0.run(`tail -n 40 ${logs}`, { check: false })).stdout
}
