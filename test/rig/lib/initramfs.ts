import { lstatSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cached, fileKey, keyOf, projectRoot } from './cache.js'
import type { Kernel } from './kernels.js'
import { run } from './process.js'
import type { RigOptions } from './types.js'

/** A file for a guest: where it comes from, or its content. */
export type GuestFile = string | { readonly content: string | Uint8Array; readonly mode?: number }

export interface InitramfsOptions extends RigOptions {
  readonly kernel: Kernel
  /** Modules of the kernel to load at boot, by name, in order; what they depend on comes along. */
  readonly modules?: readonly string[]
  /** Modules only to be there, as /lib/rig/NAME.ko, for the test to load. */
  readonly extraModules?: readonly string[]
  /** Guest path → host path or content. */
  readonly files?: Readonly<Record<string, GuestFile>>
  /** Shell lines to run before the guest says it is ready. */
  readonly setup?: string
}

/** newc cpio, the format of an initramfs: Documentation/driver-api/early-userspace/buffer-format.rst. */
export class Cpio {
  private readonly parts: Buffer[] = []
  private readonly names = new Set<string>()
  private inode = 1

  directory(name: string): void {
    this.add(name, 0o40755, Buffer.alloc(0))
  }

  file(name: string, content: Uint8Array, mode = 0o644): void {
    this.add(name, 0o100000 | mode, content)
  }

  link(name: string, target: string): void {
    this.add(name, 0o120777, Buffer.from(target))
  }

  /** A character device. */
  device(name: string, major: number, minor: number): void {
    this.add(name, 0o20600, Buffer.alloc(0), major, minor)
  }

  end(): Buffer {
    this.entry('TRAILER!!!', 0, Buffer.alloc(0), 0, 0)
    return Buffer.concat(this.parts)
  }

  private add(name: string, mode: number, content: Uint8Array, major = 0, minor = 0): void {
    const clean = name.replace(/^\/+/, '')
    const parent = path.posix.dirname(clean)
    if (parent !== '.' && !this.names.has(parent)) this.directory(parent)
    if (this.names.has(clean)) return
    this.names.add(clean)
    this.entry(clean, mode, content, major, minor)
  }

  private entry(name: string, mode: number, content: Uint8Array, major: number, minor: number): void {
    const fields = [this.inode++, mode, 0, 0, 1, 0, content.length, 0, 0, major, minor, name.length + 1, 0]
    const header = `070701${fields.map((value) => value.toString(16).padStart(8, '0')).join('')}${name}\0`
    this.parts.push(pad(Buffer.from(header, 'latin1')), pad(Buffer.from(content)))
  }
}

const pad = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)])

/** A module's name as the kernel has it, whatever its file is called. */
const moduleName = (file: string): string =>
  path
    .basename(file)
    .replace(/\.ko(\.\w+)?$/, '')
    .replaceAll('-', '_')

/** The files of these modules and all they need, in the order to load them. From modules.dep. */
export function moduleFiles(kernel: Kernel, names: readonly string[]): string[] {
  const table = new Map<string, string[]>()
  for (const line of readFileSync(path.join(kernel.modules, 'modules.dep'), 'utf8').split('\n')) {
    const [file, needs = ''] = line.split(':')
    if (file) table.set(moduleName(file), [file, ...needs.trim().split(' ').filter(Boolean)])
  }
  const order: string[] = []
  for (const name of names) {
    const found = table.get(name.replaceAll('-', '_'))
    if (!found) throw new Error(`Kernel ${kernel.release} has no module ${name}`)
    // modules.dep lists direct and indirect needs, the deepest last.
    for (const file of found.toReversed()) if (!order.includes(file)) order.push(file)
  }
  return order.map((file) => path.join(kernel.modules, file))
}

/** A module's bytes, unpacked: what busybox's insmod takes. */
export async function moduleBytes(file: string): Promise<Buffer> {
  if (!file.endsWith('.xz')) return readFileSync(file)

  const folder = await cached('module', keyOf(file, lstatSync(file).size), async (into) => {
    await run('sh', ['-c', 'xz -dc "$0" > "$1"', file, path.join(into, 'module.ko')])
  })
  return readFileSync(path.join(folder, 'module.ko'))
}

const INITTAB = `::sysinit:/rig/setup
::respawn:/rig/agent
::ctrlaltdel:/bin/poweroff -f
`

const setupScript = (options: InitramfsOptions, loads: readonly string[]): string => `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /run /tmp /dev/pts
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
hostname guest
ip link set lo up
${loads.map((file) => `insmod ${file} || echo "rig: ${file} did not load"`).join('\n')}
${options.setup ?? ''}
`

const AGENT = path.join(projectRoot, 'test/rig/guest/agent.c')

/** The rig's end in a VM (test/rig/guest/agent.c), for whatever root it has; cached. */
export async function agentProgram(options: RigOptions = {}): Promise<Buffer> {
  const folder = await cached('agent', fileKey(AGENT), async (into) => {
    await run('gcc', ['-static', '-s', '-O2', AGENT, '-o', path.join(into, 'agent')], options)
  })
  return readFileSync(path.join(folder, 'agent'))
}

/** Builds an initramfs (cached by its content): busybox, the rig's agent, modules and files. Gives its path. */
export async function initramfs(options: InitramfsOptions): Promise<string> {
  const cpio = new Cpio()
  for (const name of ['bin', 'dev', 'proc', 'sys', 'run', 'tmp', 'root']) cpio.directory(name)
  cpio.device('dev/console', 5, 1)
  cpio.device('dev/null', 1, 3)
  const busybox = '/bin/busybox'
  cpio.file('bin/busybox', readFileSync(busybox), 0o755)
  cpio.link('init', 'bin/busybox')
  cpio.link('sbin', 'bin')
  cpio.link('bin/sh', 'busybox')
  cpio.file('etc/inittab', Buffer.from(INITTAB))
  cpio.file('etc/passwd', Buffer.from('root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n'))
  cpio.file('etc/group', Buffer.from('root:x:0:\nnogroup:x:65534:\n'))
  const loads: string[] = []
  for (const file of moduleFiles(options.kernel, options.modules ?? [])) {
    const at = `/lib/rig/${moduleName(file)}.ko`
    cpio.file(at, await moduleBytes(file))
    loads.push(at)
  }
  for (const file of moduleFiles(options.kernel, options.extraModules ?? [])) {
    cpio.file(`/lib/rig/${moduleName(file)}.ko`, await moduleBytes(file))
  }
  cpio.file('rig/setup', Buffer.from(setupScript(options, loads)), 0o755)
  cpio.file('rig/agent', await agentProgram(options), 0o755)
  for (const [name, file] of Object.entries(options.files ?? {})) addFile(cpio, name, file)
  const content = cpio.end()
  const folder = await cached('initramfs', keyOf(content), async (into) => {
    writeFileSync(path.join(into, 'initrd'), content)
  })
  return path.join(folder, 'initrd')
}

function addFile(cpio: Cpio, name: string, file: GuestFile): void {
  if (typeof file !== 'string') {
    cpio.file(name, Buffer.from(file.content), file.mode ?? 0o644)
    return
  }
  const status = lstatSync(file)
  if (status.isSymbolicLink()) {
    cpio.link(name, readlinkSync(file))
  } else if (status.isDirectory()) {
    cpio.directory(name)
    for (const entry of readdirSync(file)) addFile(cpio, path.posix.join(name, entry), path.join(file, entry))
  } else {
    cpio.file(name, readFileSync(file), status.mode & 0o777)
  }
}
