import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { gunzipSync } from 'node:zlib'
import { hostMirror, Suite } from '../../lib/apt.js'
import { cached, keyOf } from '../../lib/cache.js'
import { agentProgram, Cpio, moduleBytes, moduleFiles } from '../../lib/initramfs.js'
import type { Kernel } from '../../lib/kernels.js'
import { run } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'
import { BLOCK, FIRST, INIT } from './scripts.js'

const SUITE = 'bookworm'
/** The hypervisor's packages; the tools of the same version go into dom0. */
const HYPERVISOR = 'xen-hypervisor-4.17-amd64'
const PACKAGES = ['xen-utils-4.17', 'xenstore-utils', 'libstdc++6', 'procps', 'm4', 'checkpolicy']

/** The hypervisor, unpacked: QEMU's multiboot loader takes the plain 32-bit ELF only. Cached. */
export async function hypervisor(options: RigOptions = {}): Promise<string> {
  const folder = await cached(
    'xen-hypervisor',
    keyOf(hostMirror(), SUITE, HYPERVISOR),
    async (into) => {
      options.progress?.(`downloading ${HYPERVISOR}`)
      const suite = await Suite.open(SUITE, options)
      const unpacked = path.join(into, 'package')
      for (const deb of await suite.download([HYPERVISOR], into, options)) {
        await run('dpkg-deb', ['-x', deb, unpacked], options)
        rmSync(deb)
      }
      const name = readdirSync(path.join(unpacked, 'boot')).find((file) => file.endsWith('.gz'))
      if (!name) throw new Error(`${HYPERVISOR} holds no hypervisor`)
      writeFileSync(path.join(into, 'xen'), gunzipSync(readFileSync(path.join(unpacked, 'boot', name))))
      rmSync(unpacked, { recursive: true })
    },
    options,
  )
  return path.join(folder, 'xen')
}

/** Left out: nothing in dom0 reads it. */
const LEFT_OUT = ['doc', 'man', 'locale', 'i18n', 'info', 'zoneinfo']

/**
 * dom0's root as an ext4 image: Debian with Xen's tools, and this machine's Node. Cached. It holds no kernel modules and
 * no program of the rig: those come with the initramfs.
 */
export async function dom0Root(options: RigOptions = {}): Promise<string> {
  const mirror = hostMirror()
  const excluded = LEFT_OUT.map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`)
  const settings = ['Acquire::Languages "none"', 'APT::Install-Recommends "false"'].map((text) => `--aptopt=${text}`)
  const source = `deb [signed-by=${mirror.keyring}] ${mirror.uri} ${SUITE} main`
  const folder = await cached(
    'xen-dom0',
    keyOf(source, PACKAGES, excluded, settings, process.version, 2),
    async (into) => {
      options.progress?.('making the root of dom0: Debian with Xen tools (about a minute, once)')
      const root = path.join(into, 'root')
      const include = ['--variant=minbase', `--include=${PACKAGES.join(',')}`, '--quiet']
      await run('mmdebstrap', [...include, ...excluded, ...settings, SUITE, root, source], options)
      const script = 'cd "$0" && rm -rf var/cache/apt var/lib/apt/lists && mkdir -p rig app && cp -L "$1" usr/bin/node'
      await run('sh', ['-c', script, root, process.execPath], options)
      await addLibraries(root, options)
      const make = ['-q', '-t', 'ext4', '-O', '^has_journal', '-d', root, path.join(into, 'root.img'), '1500M']
      await run('/sbin/mke2fs', make, options)
      rmSync(root, { recursive: true, force: true })
    },
    options,
  )
  return path.join(folder, 'root.img')
}

/** What Node needs and Debian's base has not, at the place it has here. */
async function addLibraries(root: string, options: RigOptions): Promise<void> {
  const text = await run('ldd', [process.execPath], options)
  for (const [, file = ''] of text.matchAll(/(?:=> )(\/\S+)/g)) {
    const name = path.basename(file)
    const there = ['lib/x86_64-linux-gnu', 'usr/lib/x86_64-linux-gnu', 'usr/local/lib'].some((folder) =>
      existsSync(path.join(root, folder, name)),
    )
    if (there) continue
    mkdirSync(path.join(root, 'usr/local/lib'), { recursive: true })
    await run('cp', ['-L', file, path.join(root, 'usr/local/lib', name)], options)
  }
  await run('ldconfig', ['-r', root], options)
}

/** Loaded by dom0's initramfs: the disk controller, the file system, the devices Xen's libraries open, disks of guests. */
const MODULES = [
  'ahci',
  'sd_mod',
  'crc32c_generic',
  'ext4',
  'xenfs',
  'xen-evtchn',
  'xen-gntdev',
  'xen-gntalloc',
  'xen-privcmd',
  'xen-blkback',
  'loop',
]

/** dom0's initramfs; cached. */
export async function dom0Initrd(kernel: Kernel, options: RigOptions = {}): Promise<string> {
  const cpio = new Cpio()
  for (const name of ['bin', 'dev', 'proc', 'sys', 'rig']) cpio.directory(name)
  cpio.device('dev/console', 5, 1)
  cpio.device('dev/null', 1, 3)
  cpio.file('bin/busybox', readFileSync('/bin/busybox'), 0o755)
  cpio.link('bin/sh', 'busybox')
  const loads: string[] = []
  for (const file of moduleFiles(kernel, MODULES)) {
    const at = `/lib/${path.basename(file).replace(/\.xz$/, '')}`
    cpio.file(at, await moduleBytes(file))
    loads.push(at)
  }
  cpio.file('init', Buffer.from(FIRST(loads)), 0o755)
  for (const [name, text] of Object.entries({ init: INIT, block: BLOCK })) {
    cpio.file(`rig/${name}`, Buffer.from(text), 0o755)
  }
  cpio.file('rig/agent', await agentProgram(options), 0o755)
  const content = cpio.end()
  const folder = await cached(
    'xen-initrd',
    keyOf(content),
    async (into) => writeFileSync(path.join(into, 'initrd'), content),
    options,
  )
  return path.join(folder, 'initrd')
}
