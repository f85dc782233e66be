import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { hostMirror } from './apt.js'
import { cached, fileKey, keyOf, projectRoot } from './cache.js'
import { agentProgram, Cpio, moduleFiles } from './initramfs.js'
import { kernel as findKernel, type Kernel } from './kernels.js'
import { run } from './process.js'
import type { RigOptions } from './types.js'
import { type BootOptions, bootVm, type Vm } from './vm.js'

const GUEST = path.join(projectRoot, 'test/rig/guest')
const PACKAGES = ['systemd-sysv', 'kmod', 'procps']
/** Small modules without hardware, loaded and unloaded all the time. */
const MODULES = ['nls_utf8', 'nls_iso8859_15', 'ts_kmp', 'ts_bm', 'lz4_compress', 'loop']
/** The kinds of load, each with a counter in the guest. */
const LOADS = ['fork', 'thread', 'bpf', 'module', 'trace', 'unit'] as const

export type BusyCounts = Readonly<Record<(typeof LOADS)[number], number>>

/** A VM with Debian's systemd that is busy: see test/rig/guest. */
export interface BusyVm {
  readonly vm: Vm
  /** Rounds each load has done so far. */
  counts(): Promise<BusyCounts>
}

/** Left out: nothing in the guest reads it, and every byte is unpacked by an emulated CPU at each boot. */
const LEFT_OUT = [
  ...['share/zoneinfo', 'share/info', 'share/perl*', 'share/bash-completion', 'lib/x86_64-linux-gnu/gconv'],
  ...['lib/x86_64-linux-gnu/*perl*', 'bin/perl*', 'lib/apt', 'lib/x86_64-linux-gnu/libapt*', 'bin/apt*'],
].map((name) => `./usr/${name}`)
LEFT_OUT.push('./var/cache/*', './var/lib/apt', './var/lib/dpkg/info')

/** Debian bookworm with systemd as a cpio archive; cached, as it takes half a minute to make. */
async function debianRoot(options: RigOptions): Promise<string> {
  const mirror = hostMirror()
  const excluded = ['doc', 'man', 'locale', 'i18n'].map((name) => `--dpkgopt=path-exclude=/usr/share/${name}/*`)
  const settings = ['Acquire::Languages "none"', 'APT::Install-Recommends "false"'].map((text) => `--aptopt=${text}`)
  const source = `deb [signed-by=${mirror.keyring}] ${mirror.uri} bookworm main`
  const pack = `cd "$0" && rm -rf ${LEFT_OUT.join(' ')} && find . | LC_ALL=C sort | cpio -o -H newc --quiet > "$1"`
  const folder = await cached(
    'debian-root',
    keyOf(source, PACKAGES, excluded, settings, pack),
    async (into) => {
      options.progress?.('making a Debian root with systemd (about half a minute, once)')
      const root = path.join(into, 'root')
      const include = ['--variant=minbase', `--include=${PACKAGES.join(',')}`, '--quiet']
      await run('mmdebstrap', [...include, ...excluded, ...settings, 'bookworm', root, source], options)
      await run('sh', ['-c', pack, root, path.join(into, 'root.cpio')], options)
      rmSync(root, { recursive: true, force: true })
    },
    options,
  )
  return path.join(folder, 'root.cpio')
}

const unit = (what: string, service: string, head = ''): string =>
  `[Unit]\nDescription=${what}\n${head}\n[Service]\n${service}\n[Install]\nWantedBy=multi-user.target\n`

// The load leaves the CPU, which is an emulated one, to whoever looks after the guest.
const load = (what: string, service: string, head?: string): string => unit(what, `${service}\nNice=10`, head)

/** Not for a guest without terminals, users, disks and updates. */
const MASKED = [
  ...['getty.target', 'getty-static.service', 'serial-getty@ttyS0.service', 'console-getty.service'],
  ...['systemd-logind.service', 'systemd-update-utmp.service', 'systemd-update-utmp-runlevel.service'],
  ...['systemd-pcrphase.service', 'systemd-pcrphase-sysinit.service', 'e2scrub_reap.service', 'timers.target'],
]

const UNITS: Readonly<Record<string, string>> = {
  'rig-agent': unit(
    'command channel of the rig',
    'ExecStart=/rig/agent\nRestart=always',
    'DefaultDependencies=no\nAfter=local-fs.target',
  ),
  'busy-fork': load('processes that come and go', 'ExecStart=/rig/busy fork'),
  'busy-thread': load('threads that come and go', 'ExecStart=/rig/busy thread'),
  'busy-bpf': load('BPF programs', 'ExecStart=/rig/busy bpf'),
  'busy-module': load('modules that come and go', `ExecStart=/rig/busy-modules.sh ${MODULES.join(' ')}`),
  'busy-trace': load('tracers', 'ExecStart=/rig/busy-trace.sh'),
  // systemd itself loads a cgroup BPF program for each of these settings, and unloads it with the unit.
  'busy-unit': load(
    'a unit that starts again and again, with BPF filters of its own',
    [
      'ExecStart=/bin/sh -c "mkdir -p /run/busy; n=$$(cat /run/busy/unit 2>/dev/null || echo 0); echo $$((n + 1)) > /run/busy/unit.new; mv /run/busy/unit.new /run/busy/unit; sleep 0.3"',
      'Restart=always\nRestartSec=100ms\nIPAddressDeny=any\nDevicePolicy=closed',
    ].join('\n'),
    'StartLimitIntervalSec=0',
  ),
}

/** The initramfs of the busy VM; cached. */
export async function busyInitrd(kernel: Kernel, options: RigOptions = {}): Promise<string> {
  const root = await debianRoot(options)
  const sources = ['busy.c', 'busy-modules.sh', 'busy-trace.sh'].map((name) => path.join(GUEST, name))
  const agent = await agentProgram(options)
  const key = keyOf(root, agent, UNITS, MASKED, MODULES, kernel.release, ...sources.map(fileKey))
  const folder = await cached(
    'busy-initrd',
    key,
    async (into) => {
      options.progress?.('building the busy guest')
      const binary = path.join(into, 'busy')
      await run('gcc', ['-static', '-O2', '-pthread', path.join(GUEST, 'busy.c'), '-o', binary], options)
      const cpio = new Cpio()
      cpio.file('rig/busy', readFileSync(binary), 0o755)
      for (const name of ['busy-modules.sh', 'busy-trace.sh']) {
        cpio.file(`rig/${name}`, readFileSync(path.join(GUEST, name)), 0o755)
      }
      cpio.file('rig/agent', agent, 0o755)
      for (const [name, text] of Object.entries(UNITS)) {
        cpio.file(`etc/systemd/system/${name}.service`, Buffer.from(text))
        cpio.link(`etc/systemd/system/multi-user.target.wants/${name}.service`, `../${name}.service`)
      }
      for (const name of MASKED) cpio.link(`etc/systemd/system/${name}`, '/dev/null')
      cpio.link('etc/systemd/system/default.target', '/lib/systemd/system/multi-user.target')
      cpio.file('etc/fstab', Buffer.from('trace /sys/kernel/tracing tracefs defaults 0 0\n'))
      cpio.file('etc/hostname', Buffer.from('busy\n'))
      cpio.link('init', 'lib/systemd/systemd')
      await addModules(cpio, kernel, path.join(into, 'modules'))
      writeFileSync(path.join(into, 'initrd'), Buffer.concat([readFileSync(root), cpio.end()]))
      rmSync(path.join(into, 'modules'), { recursive: true, force: true })
    },
    options,
  )
  return path.join(folder, 'initrd')
}

async function addModules(cpio: Cpio, kernel: Kernel, scratch: string): Promise<void> {
  const inside = path.join('lib/modules', kernel.release)
  const files = moduleFiles(kernel, MODULES).map((file) => path.relative(kernel.modules, file))
  for (const file of [...files, 'modules.order', 'modules.builtin', 'modules.builtin.modinfo']) {
    const to = path.join(scratch, inside, file)
    mkdirSync(path.dirname(to), { recursive: true })
    copyFileSync(path.join(kernel.modules, file), to)
  }
  await run('depmod', ['-b', scratch, kernel.release])
  for (const file of [
    ...files,
    'modules.dep',
    'modules.alias',
    'modules.softdep',
    'modules.builtin',
    'modules.dep.bin',
    'modules.alias.bin',
    'modules.builtin.bin',
  ]) {
    // usr/lib: in Debian's root /lib is a link, which an archive member below it would replace.
    cpio.file(path.join('usr', inside, file), readFileSync(path.join(scratch, inside, file)))
  }
}

/**
 * Boots Debian with systemd under load: processes, threads, modules and BPF programs that come and go, a kprobe, BPF
 * trampolines, the function tracer on and off. Ready when systemd has reached multi-user.target and every load has done a round.
 */
export async function bootBusyVm(options: BootOptions = {}): Promise<BusyVm & AsyncDisposable> {
  const kernel =
    typeof options.kernel === 'object' && 'vmlinuz' in options.kernel
      ? options.kernel
      : await findKernel(options.kernel ?? '6.1', options)
  const initrd = await busyInitrd(kernel, options)
  const vm = await bootVm({
    name: 'busy',
    memory: '1G',
    timeoutMs: 400_000,
    ...options,
    kernel,
    initrd,
    append: `systemd.show_status=false audit=0 ${options.append ?? ''}`,
  })
  const counts = async (): Promise<BusyCounts> => {
    const { stdout } = await vm.guest.run(
      LOADS.map((name) => `echo ${name} $(cat /run/busy/${name} 2>/dev/null)`).join('\n'),
    )
    const found = new Map(
      stdout.split('\n').map((line): [string, string] => [line.split(' ')[0] ?? '', line.split(' ')[1] ?? '']),
    )
    return Object.fromEntries(LOADS.map((name) => [name, Number(found.get(name) ?? 0)])) as BusyCounts
  }
  try {
    options.progress?.('waiting until systemd is up and every kind of load runs')
    const all = LOADS.map((name) => `[ -s /run/busy/${name} ]`).join(' && ')
    await vm.guest.run(`until systemctl -q is-active multi-user.target && ${all}; do sleep 0.2; done`, {
      timeoutMs: options.timeoutMs ?? 400_000,
    })
    return { vm, counts, [Symbol.asyncDispose]: () => vm.close() }
  } catch (error) {
    const state = await vm.guest
      .run('systemctl list-units --failed --no-pager; journalctl -n 40 --no-pager', { check: false })
      .catch(() => undefined)
    const said = `${state?.stdout ?? ''}\n${vm.consoleTail(4096)}`
    await vm.close()
    throw new Error(`The busy VM did not get going: ${(error as Error).message}\n${said}`, { cause: error })
  }
}
