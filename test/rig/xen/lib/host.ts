import { closeSync, copyFileSync, ftruncateSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import path from 'node:path'
import { GuestAgent, type GuestOutput, type GuestRunOptions } from '../../lib/guest.js'
import { kernel as findKernel, type Kernel } from '../../lib/kernels.js'
import { privateFolder, removeFolder, start, stop } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'
import { createGuest, type GuestOptions, type XenGuest } from './guest.js'
import { dom0Initrd, dom0Root, hypervisor } from './image.js'
import { APP, payload } from './payload.js'

export interface XenOptions extends RigOptions {
  /** How long dom0 may take until it is ready, default 300 s. */
  readonly timeoutMs?: number
}

/** The most one push or pull takes. */
const MAILBOX = 256 * 2 ** 20

/** The control domain. */
export class Dom0 {
  constructor(
    private readonly agent: GuestAgent,
    /** A file here that is a disk there: what goes in or out at once, not a character at a time. */
    private readonly mailbox: string,
  ) {}

  /** Runs a script by dom0's shell; one after the other. */
  run(script: string, options: GuestRunOptions = {}): Promise<GuestOutput> {
    return this.agent.run(script, options)
  }

  /** Runs Node in the folder of the programs. Emulated: its start alone takes seconds. */
  node(args: readonly string[], options: GuestRunOptions = {}): Promise<GuestOutput> {
    const words = args.map((arg) => `'${arg.replaceAll("'", `'\\''`)}'`).join(' ')
    return this.run(`cd ${APP} && exec node ${words}`, { timeoutMs: 120_000, ...options })
  }

  /** Writes a file in dom0. */
  async push(name: string, content: Uint8Array | string, mode = 0o644): Promise<void> {
    const bytes = Buffer.from(content)
    if (bytes.length > MAILBOX) throw new Error(`${name} is larger than ${MAILBOX} bytes`)
    const file = openSync(this.mailbox, 'r+')
    for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at, bytes.length - at, at)
    closeSync(file)
    const blocks = Math.ceil(bytes.length / 65536)
    // Past the cache: the disk changes under dom0.
    const read = `dd if=/rig/mailbox bs=64K count=${blocks} iflag=direct status=none | head -c ${bytes.length}`
    await this.run(`${blocks === 0 ? ':' : read} > '${name}' && chmod ${mode.toString(8)} '${name}'`)
  }

  /** Reads a file of dom0. */
  async pull(name: string): Promise<Buffer> {
    const size = Number((await this.run(`stat -c %s '${name}'`)).stdout)
    if (size > MAILBOX) throw new Error(`${name} has ${size} bytes, more than ${MAILBOX}`)
    if (size === 0) return Buffer.alloc(0)
    // Whole blocks, as O_DIRECT wants them.
    await this.run(
      `dd if='${name}' bs=64K conv=sync status=none | dd of=/rig/mailbox bs=64K iflag=fullblock oflag=direct status=none`,
    )
    const bytes = Buffer.alloc(size)
    const file = openSync(this.mailbox, 'r')
    for (let at = 0; at < size; ) {
      const part = readSync(file, bytes, at, size - at, at)
      if (part === 0) throw new Error(`dom0 wrote ${at} of ${size} bytes of ${name}`)
      at += part
    }
    closeSync(file)
    return bytes
  }
}

/** A Xen host. `await using xen = await bootXen()`. */
export class XenHost implements AsyncDisposable {
  private ended = false

  private constructor(
    readonly dom0: Dom0,
    /** What Xen and dom0's kernel wrote. */
    readonly consoleLog: string,
    readonly kernel: Kernel,
    private readonly folder: string,
    private readonly agent: GuestAgent,
    private readonly child: ReturnType<typeof start>,
    private readonly options: RigOptions,
  ) {}

  static async boot(options: XenOptions = {}): Promise<XenHost> {
    const kernel = await findKernel('6.1', options)
    const xen = await hypervisor(options)
    const root = await dom0Root(options)
    const initrd = await dom0Initrd(kernel, options)
    const app = await payload(kernel, options)
    const folder = privateFolder('/dev/shm', 'cloudapp-xen-')
    const at = (file: string): string => path.join(folder, file)
    const mailbox = openSync(at('mailbox'), 'wx', 0o600)
    ftruncateSync(mailbox, MAILBOX)
    closeSync(mailbox)
    // QEMU splits the list of modules at commas and blanks.
    copyFileSync(kernel.vmlinuz, at('vmlinuz'))
    copyFileSync(initrd, at('initrd'))
    const agent = await GuestAgent.listen(at('agent.sock'))
    options.progress?.(`booting a Xen host (dom0: Linux ${kernel.release}, emulated; 20 s to a minute)`)
    const disk = (port: number, file: string, more = ''): string[] => [
      ...['-drive', `file=${file},format=raw,if=none,id=d${port}${more}`],
      ...['-device', `ide-hd,drive=d${port},bus=ide.${port}`],
    ]
    const child = start(
      'qemu-system-x86_64',
      [
        ...['-name', 'xen', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
        ...[
          '-machine',
          'q35',
          '-accel',
          'tcg,thread=multi,tb-size=512',
          '-cpu',
          'max,+svm,+npt',
          '-smp',
          '2',
          '-m',
          '4G',
        ],
        ...['-kernel', xen],
        // smap, smep: a PV dom0 does not survive them under emulation.
        ...[
          '-append',
          'console=com1 com1=115200,8n1 dom0_mem=2G,max:2G loglvl=warning guest_loglvl=all smap=0 smep=0 bootscrub=0',
        ],
        ...['-initrd', `${at('vmlinuz')} console=hvc0 panic=-1 quiet no_timer_check,${at('initrd')}`],
        ...disk(0, root, ',snapshot=on'),
        ...disk(1, app, ',snapshot=on'),
        ...disk(2, at('mailbox')),
        ...['-chardev', `file,id=console,path=${at('console')}`, '-serial', 'chardev:console'],
        ...['-chardev', `socket,id=agent,path=${at('agent.sock')}`, '-serial', 'chardev:agent'],
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    )
    let complaint = ''
    child.stderr?.on('data', (chunk: Buffer) => {
      complaint = (complaint + chunk.toString()).slice(-4096)
    })
    const tail = (): string => `${complaint}\n${consoleTail(at('console'))}`.trim()
    child.once('error', (error) => agent.fail(error))
    child.once('exit', (code, signal) => agent.fail(new Error(`The Xen host ended (${code ?? signal})\n${tail()}`)))
    const onAbort = (): void => agent.fail(new Error('Aborted while the Xen host booted'))
    options.signal?.addEventListener('abort', onAbort, { once: true })
    try {
      await agent.ready(options.timeoutMs ?? 300_000)
      const dom0 = new Dom0(agent, at('mailbox'))
      return new XenHost(dom0, at('console'), kernel, folder, agent, child, options)
    } catch (error) {
      const said = tail()
      agent.close()
      await stop(child, 0)
      removeFolder(folder)
      throw new Error(`The Xen host did not come up: ${(error as Error).message}\n${said}`, { cause: error })
    } finally {
      options.signal?.removeEventListener('abort', onAbort)
    }
  }

  /** Creates a guest and waits until its agent answers. */
  createGuest(options: GuestOptions): Promise<XenGuest> {
    return createGuest(this.dom0, this.kernel, { ...this.options, ...options })
  }

  /** The end of what Xen and dom0's kernel wrote. */
  consoleTail(bytes = 8192): string {
    return consoleTail(this.consoleLog, bytes)
  }

  /** Ends QEMU, and all domains with it. Idempotent. */
  async close(): Promise<void> {
    if (this.ended) return
    this.ended = true
    this.agent.close()
    await stop(this.child, 0)
    removeFolder(this.folder)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** Boots a Xen host in which guests can be created. */
export const bootXen = (options: XenOptions = {}): Promise<XenHost> => XenHost.boot(options)

function consoleTail(file: string, bytes = 8192): string {
  try {
    return readFileSync(file).subarray(-bytes).toString('latin1').replaceAll('\r', '')
  } catch {
    return ''
  }
}
