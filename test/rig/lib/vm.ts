import { chmodSync, chownSync, closeSync, ftruncateSync, openSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { QmpClient } from '../../../src/vmi/sources/qmp.js'
import { GuestAgent } from './guest.js'
import { type GuestFile, initramfs } from './initramfs.js'
import { kernel as findKernel, type Kernel, type KernelName, type KernelSpec } from './kernels.js'
import { privateFolder, removeFolder, start, stop } from './process.js'
import { parseSize, type RigOptions } from './types.js'

export interface BootOptions extends RigOptions {
  /** QEMU's -name; default 'rig'. */
  readonly name?: string
  /** Default '6.1', Debian's own. */
  readonly kernel?: Kernel | KernelName | KernelSpec
  /** RAM, default '512M'. */
  readonly memory?: string | number
  /** QEMU's -cpu, default 'max', which has 5-level paging; 'max,-la57' has not. */
  readonly cpu?: string
  /** Number of vCPUs, default 1. */
  readonly cpus?: number
  /** Added to the kernel's command line. */
  readonly append?: string
  /** An initramfs of the caller's; without it one is built of the next four. */
  readonly initrd?: string
  /** Modules to load at boot. */
  readonly modules?: readonly string[]
  /** Modules put into /lib/rig/NAME.ko. */
  readonly extraModules?: readonly string[]
  readonly files?: Readonly<Record<string, GuestFile>>
  /** Shell lines to run in the guest before it is ready. */
  readonly setup?: string
  /** More arguments for QEMU. */
  readonly qemu?: readonly string[]
  /** The uid that owns the folder, the RAM file and the product's QMP socket; default: this process's. */
  readonly owner?: number
  /** How long the guest may take until it is ready, default 180 s. */
  readonly timeoutMs?: number
  /** Do not wait for the guest's agent (a guest that has none). */
  readonly noAgent?: boolean
}

/** A running VM. `await using vm = await bootVm()`. */
export class Vm implements AsyncDisposable {
  private ended = false

  private constructor(
    readonly name: string,
    /** QEMU's. */
    readonly pid: number,
    /** Of mode 0700; holds the files below. */
    readonly folder: string,
    /** The QMP socket for the product; the rig does not use it. */
    readonly qmp: string,
    /** The file that is the guest's RAM. */
    readonly ram: string,
    /** What the guest wrote on its console, kernel log included. */
    readonly consoleLog: string,
    readonly guest: GuestAgent,
    /** The rig's own QMP connection. */
    readonly monitor: QmpClient,
    private readonly child: ReturnType<typeof start>,
  ) {}

  /** Where the product's `qemu:` source finds this VM. */
  get uri(): string {
    return `qemu:${this.qmp}`
  }

  /** Boots a VM and waits until its agent answers. Throws, with the end of the console, if it does not come up. */
  static async boot(options: BootOptions = {}): Promise<Vm> {
    const name = options.name ?? 'rig'
    const kernel =
      typeof options.kernel === 'object' && 'vmlinuz' in options.kernel
        ? options.kernel
        : await findKernel(options.kernel ?? '6.1', options)
    const initrd = options.initrd ?? (await initramfs({ ...options, kernel }))
    const folder = privateFolder('/dev/shm', 'cloudapp-rig-')
    const at = (file: string): string => path.join(folder, file)
    const agent = await GuestAgent.listen(at('agent.sock'))
    const size = parseSize(options.memory ?? '512M')
    // Made here, so that its mode does not depend on QEMU's umask.
    const ram = openSync(at('ram'), 'wx', 0o600)
    ftruncateSync(ram, size)
    closeSync(ram)
    options.progress?.(`booting ${name} (Linux ${kernel.release}, ${size / 2 ** 20} MiB, emulated)`)
    // thread=single: with a thread for each vCPU, QEMU 7.2 now and then runs an int3 of a static branch that the other vCPU has
    // patched away already, and the kernel dies of it (5 of 250 boots of Linux 6.12 with two vCPUs).
    // no_timer_check: on a loaded host, timer interrupts come too late for the kernel's check and it would panic.
    const child = start(
      'qemu-system-x86_64',
      [
        ...[
          '-name',
          name,
          '-uuid',
          crypto.randomUUID(),
          '-nodefaults',
          '-no-user-config',
          '-display',
          'none',
          '-no-reboot',
        ],
        ...['-accel', 'tcg,thread=single,tb-size=192', '-cpu', options.cpu ?? 'max', '-smp', String(options.cpus ?? 1)],
        ...['-machine', 'q35,memory-backend=ram0', '-m', `${size / 2 ** 20}M`],
        ...['-object', `memory-backend-file,id=ram0,mem-path=${at('ram')},size=${size},share=on`],
        ...['-kernel', kernel.vmlinuz, '-initrd', initrd],
        ...['-append', `console=ttyS0 quiet panic=-1 no_timer_check ${options.append ?? ''}`],
        ...['-chardev', `file,id=console,path=${at('console')}`, '-serial', 'chardev:console'],
        ...['-chardev', `socket,id=agent,path=${at('agent.sock')}`, '-serial', 'chardev:agent'],
        ...['-qmp', `unix:${at('qmp.sock')},server=on,wait=off`, '-qmp', `unix:${at('rig.sock')},server=on,wait=off`],
        ...(options.qemu ?? []),
      ],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    )
    let complaint = ''
    child.stderr?.on('data', (chunk: Buffer) => {
      complaint = (complaint + chunk.toString()).slice(-4096)
    })
    const tail = (): string => `${complaint}\n${consoleTail(at('console'))}`.trim()
    child.once('error', (error) => agent.fail(error))
    child.once('exit', (code, signal) => agent.fail(new Error(`QEMU of ${name} ended (${code ?? signal})\n${tail()}`)))
    const onAbort = (): void => agent.fail(new Error('Aborted while the guest booted'))
    options.signal?.addEventListener('abort', onAbort, { once: true })
    let monitor: QmpClient | undefined
    try {
      monitor = await connectMonitor(at('rig.sock'), child)
      if (options.owner !== undefined) {
        for (const file of ['', 'ram', 'qmp.sock', 'console']) chownSync(at(file), options.owner, options.owner)
      }
      chmodSync(at('qmp.sock'), 0o600)
      if (!options.noAgent) await agent.ready(options.timeoutMs ?? 180_000)
      return new Vm(name, child.pid ?? 0, folder, at('qmp.sock'), at('ram'), at('console'), agent, monitor, child)
    } catch (error) {
      const said = tail()
      monitor?.close()
      agent.close()
      await stop(child, 0)
      removeFolder(folder)
      throw new Error(`${name} did not come up: ${(error as Error).message}\n${said}`, { cause: error })
    } finally {
      options.signal?.removeEventListener('abort', onAbort)
    }
  }

  /** The end of what the guest wrote on its console. */
  consoleTail(bytes = 8192): string {
    return consoleTail(this.consoleLog, bytes)
  }

  /** Ends QEMU and removes the folder. Idempotent. */
  async close(): Promise<void> {
    if (this.ended) return
    this.ended = true
    this.monitor.close()
    this.guest.close()
    await stop(this.child, 0)
    removeFolder(this.folder)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** Boots a VM whose RAM is a file. */
export const bootVm = (options: BootOptions = {}): Promise<Vm> => Vm.boot(options)

function consoleTail(file: string, bytes = 8192): string {
  try {
    return readFileSync(file).subarray(-bytes).toString('latin1').replaceAll('\r', '')
  } catch {
    return ''
  }
}

async function connectMonitor(path: string, child: ReturnType<typeof start>): Promise<QmpClient> {
  for (let attempt = 0; ; attempt++) {
    try {
      return await QmpClient.connect(path)
    } catch (error) {
      if (attempt > 400 || child.exitCode !== null || child.signalCode !== null) throw error
      await new Promise((resolve) => setTimeout(resolve, 25))
    }
  }
}
