import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { gunzipSync } from 'node:zlib'
import { hostMirror, Suite } from '../../lib/apt.js'
import { cached, keyOf } from '../../lib/cache.js'
import { AGENT, Cpio, moduleBytes, moduleFiles } from '../../lib/initramfs.js'
import type { Kernel } from '../../lib/kernels.js'
import { run } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'

const SUITE = 'bookworm'
/** The hypervisor's packages; the tools of the same version go into dom0. */
const HYPERVISOR = 'xen-hypervisor-4.17-amd64'
const PACKAGES = ['xen-utils-4.17', 'xenstore-utils', 'libstdc++6', 'procps']

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

/** Loaded by dom0's initramfs: the disk controller, the file system, and the devices Xen's libraries open. */
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
]

/** Finds the disk on a port of the SATA controller; names are given out in the order the disks answer. */
const DISK = `disk() {
  for block in /sys/block/sd*; do
    case "$(readlink -f "$block")" in */ata$1/*) echo "/dev/\${block##*/}" ;; esac
  done
}
`

const FIRST = (loads: readonly string[]): string => `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
${loads.map((file) => `insmod ${file} || echo "rig: ${file} did not load"`).join('\n')}
${DISK}
until [ -n "$(disk 1)" ] && [ -n "$(disk 2)" ] && [ -n "$(disk 3)" ]; do sleep 0.1; done
mkdir -p /root
mount -t ext4 "$(disk 1)" /root || echo "rig: the root could not be mounted"
cp -a /rig/. /root/rig/
ln -sf "$(disk 2)" /root/rig/payload
ln -sf "$(disk 3)" /root/rig/mailbox
for name in proc sys dev; do mount --move /$name /root/$name; done
exec switch_root /root /rig/init
`

/** dom0's first process: what an init of Debian would do for Xen, without hardware, users and services. */
const INIT = `#!/bin/bash
export PATH=/usr/lib/xen-4.17/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts /dev/shm /run/xen /run/rig /var/log/xen/console /run/xenstored /var/lib/xenstored /var/lib/xen /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t xenfs xenfs /proc/xen
hostname dom0
ip link set lo up 2>/dev/null
tar -xf /rig/payload -C /app || echo "rig: the payload could not be unpacked"
xenstored --pid-file /run/xenstored.pid || echo "rig: xenstored did not start"
until xenstore-exists / 2>/dev/null; do sleep 0.1; done
xen-init-dom0 || echo "rig: xen-init-dom0 failed"
xenconsoled --log=all --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid || echo "rig: no xenconsoled"
while true; do /rig/agent; done
`

/**
 * Runs one script in a guest: its console is a terminal in dom0, at whose other end the guest's agent listens.
 * Arguments: the terminal, an id, the script as base64.
 */
const ASK = `#!/bin/bash
exec 3<>"$1" || exit 125
stty raw -echo <&3
printf '%s %s\\n' "$2" "$3" >&3
while IFS= read -r line <&3; do
  line="\${line%%$'\\r'}"
  case "$line" in *"@$2 "*) printf '%s\\n' "\${line##*@}"; exit 0 ;; esac
done
exit 125
`

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
  for (const [name, text] of Object.entries({ init: INIT, agent: AGENT, ask: ASK })) {
    cpio.file(`rig/${name}`, Buffer.from(text), 0o755)
  }
  const content = cpio.end()
  const folder = await cached(
    'xen-initrd',
    keyOf(content),
    async (into) => writeFileSync(path.join(into, 'initrd'), content),
    options,
  )
  return path.join(folder, 'initrd')
}
