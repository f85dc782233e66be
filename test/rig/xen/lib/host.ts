import { copyFileSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import path from 'node:path'
import { GuestAgent } from '../../lib/guest.js'
import { kernel as findKernel, type Kernel } from '../../lib/kernels.js'
import { privateFolder, removeFolder, start, stop } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'
import { createGuest, type GuestOptions } from './create.js'
import { Dom0 } from './dom0.js'
import type { XenGuest } from './guest.js'
import { dom0Initrd, dom0Root, hypervisor } from './image.js'
import { noteSilence, watchConsole } from './lost.js'
import { Mailbox } from './mailbox.js'
import { payload } from './payload.js'

export interface XenOptions extends RigOptions {
  /** A hypervisor of the caller's, as a plain ELF; default Debian's. */
  readonly hypervisor?: string
  /** Added to Xen's command line. */
  readonly append?: string
  /** Files for Xen beside dom0's kernel and initramfs: multiboot modules, as a FLASK policy. */
  readonly multiboot?: readonly string[]
  /** How long dom0 may take until it is ready, default 300 s. */
  readonly timeoutMs?: number
}

/**
 * Xen's command line, with what emulation needs:
 * - smap, smep: a PV dom0 does not survive them.
 * - eager-fpu: with Xen's lazy switching (CR0.TS) a PV kernel's XSAVE must trap; under QEMU it does not (FXSAVE does), so
 *   the kernel saves the vector registers of whoever ran before, programs find each other's, and Node dies of it.
 */
const XEN = [
  'console=com1 com1=115200,8n1 dom0_mem=2G,max:2G loglvl=warning guest_loglvl=all bootscrub=0',
  'smap=0 smep=0 spec-ctrl=eager-fpu',
].join(' ')

/** A Xen host. `await using xen = await bootXen()`. */
export class XenHost implements AsyncDisposable {
  private ended = false
  /** It runs, and dom0 does not answer any more. */
  silent = false

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
    const xen = options.hypervisor ?? (await hypervisor(options))
    const root = await dom0Root(options)
    const initrd = await dom0Initrd(kernel, options)
    const app = await payload(kernel, options)
    const folder = privateFolder('/dev/shm', 'cloudapp-xen-')
    const at = (file: string): string => path.join(folder, file)
    const mailbox = new Mailbox(at('mailbox'))
    // QEMU splits the list of modules at commas and blanks.
    copyFileSync(kernel.vmlinuz, at('vmlinuz'))
    copyFileSync(initrd, at('initrd'))
    const multiboot = (options.multiboot ?? []).map((file, index) => {
      copyFileSync(file, at(`module-${index}`))
      return at(`module-${index}`)
    })
    const agent = await GuestAgent.listen(at('agent.sock'), true)
    options.progress?.(`booting a Xen host (dom0: Linux ${kernel.release}, emulated; 20 s to a minute)`)
    const disk = (port: number, file: string, more = ''): string[] => [
      ...['-drive', `file=${file},format=raw,if=none,id=d${port}${more}`],
      ...['-device', `ide-hd,drive=d${port},bus=ide.${port}`],
    ]
    const child = start(
      'qemu-system-x86_64',
      [
        ...['-name', 'xen', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
        ...['-machine', 'q35', '-accel', 'tcg,thread=multi,tb-size=512', '-cpu', 'max,+svm,+npt'],
        ...['-smp', '2', '-m', '4G', '-kernel', xen],
        ...['-append', `${XEN} ${options.append ?? ''}`],
        ...[
          '-initrd',
          [`${at('vmlinuz')} console=hvc0 panic=-1 quiet no_timer_check`, at('initrd'), ...multiboot].join(),
        ],
        ...disk(0, root, ',snapshot=on'),
        ...disk(1, app, ',snapshot=on'),
        ...disk(2, at('mailbox')),
        // Once more, for guests: what dom0 writes on its own is not seen here.
        ...disk(3, root, ',snapshot=on'),
        ...disk(4, app, ',snapshot=on'),
        ...['-chardev', `file,id=console,path=${at('console')}`, '-serial', 'chardev:console'],
        ...['-monitor', `unix:${at('monitor')},server=on,wait=off`],
        ...['-chardev', `socket,id=agent,path=${at('agent.sock')}`, '-serial', 'chardev:agent'],
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    )
    watchConsole(at('console'))
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
      let host: XenHost | undefined
      const dom0 = new Dom0(agent, mailbox, () => host?.lose())
      host = new XenHost(dom0, at('console'), kernel, folder, agent, child, options)
      return host
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

  /** What explains a failure: the ends of Xen's console, dom0's kernel log, and the consoles of all guests. */
  async logs(): Promise<string> {
    const guests = 'for f in /var/log/xen/console/*.log; do echo "--- $f"; tail -n 20 "$f" | cut -c 1-300; done'
    const script = `xl list; dmesg | tail -n 20; ${guests}`
    const said = await this.dom0.run(script, { check: false }).catch((error: Error) => ({
      stdout: `dom0 does not answer: ${error.message}`,
    }))
    const registers = this.silent ? await monitor(path.join(this.folder, 'monitor'), 'info registers -a') : ''
    return `--- Xen and dom0\n${this.consoleTail(2048)}\n${said.stdout}\n${registers}`
  }

  private lose(): void {
    this.silent = true
    noteSilence()
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

/** What QEMU's monitor answers in two seconds. */
async function monitor(socket: string, command: string): Promise<string> {
  const client = connect(socket)
  let said = ''
  client.on('data', (chunk) => {
    said += chunk.toString()
  })
  client.on('error', (error) => {
    said += String(error)
  })
  client.write(`${command}\n`)
  await new Promise((resolve) => setTimeout(resolve, 2000))
  client.destroy()
  // The vector registers say nothing of where it hangs.
  return said.replaceAll('\r', '').replace(/^(?:YMM|FPR).*\n/gm, '')
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
