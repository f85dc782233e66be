import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import type { XenHost } from '../test/rig/xen/lib/host.js'
import type { Beside } from '../test/rig/xen/programs/lib/beside.js'
import type { Measurement } from './measure.js'
import { onXen } from './on-xen.js'

type Progress = (message: string) => void

/** What a line measures, and how a time of its unit is told. */
const WHAT: Readonly<Record<string, { readonly what: string; told(ns: number): string }>> = {
  attach: {
    what: 'opening the domain; of ours also finding its kernel, which LibVMI must be told of',
    told: (ns) => `${(ns / 1e6).toFixed(1)} ms`,
  },
  'tasks-cold': { what: 'listing the tasks, nothing mapped', told: (ns) => `${(ns / 1e6).toFixed(2)} ms` },
  'tasks-warm': { what: 'listing the tasks again, 16 times in a row', told: (ns) => `${(ns / 1e6).toFixed(2)} ms` },
  'random-reads': {
    what: '8 bytes by their kernel address, each in another page; of ours in batches of 256, mapped',
    told: (ns) => `${(ns / 1e3).toFixed(2)} us`,
  },
  bulk: { what: 'copying 64 MiB, 1 MiB in a call', told: (ns) => `${(1e3 / ns).toFixed(0)} MB/s` },
}

/** Where LibVMI and what it needs are in dom0. */
const FOLDER = '/app/libvmi'

const MIB = 256

/**
 * The xen: source in dom0 of an emulated Xen host, beside a plain C program there that does the same work by the LibVMI that
 * `CLOUDAPP_LIBVMI` names.
 */
export async function benchLibvmi(progress: Progress): Promise<Measurement[]> {
  const library = process.env.CLOUDAPP_LIBVMI ?? ''
  if (library === '') {
    progress('libvmi: left out, as CLOUDAPP_LIBVMI names no LibVMI (it is in no Debian release)')
    return []
  }
  return onXen(progress, (xen) => measure(xen, library, progress))
}

async function measure(xen: XenHost, library: string, progress: Progress): Promise<Measurement[]> {
  const guest = await xen.createGuest({ name: 'bench', kind: 'pvh', memory: `${MIB}M`, progress })
  const there = await install(xen, library)
  progress('measuring in dom0, beside LibVMI')
  const args = ['bench-libvmi.mjs', 'xen:bench', `xen:${guest.domid}`, String(MIB), there, '/app/bench-libvmi', FOLDER]
  const { stdout } = await xen.dom0.node(args, { timeoutMs: 900_000 })
  return (JSON.parse(stdout) as Beside[]).map(({ name, ours, c }) => {
    const { what = name, told = String } = WHAT[name] ?? {}
    const note = `times as fast as LibVMI; ${what}: ${told(ours)}, by LibVMI ${told(c)} (emulated)`
    return { name: `libvmi.${name}.ratio`, value: c / ours, unit: '', note }
  })
}

/** Puts LibVMI into dom0, and the libraries it needs that are not there. @returns its path in dom0 */
async function install(xen: XenHost, library: string): Promise<string> {
  const { stdout: known } = await xen.dom0.run(`mkdir -p ${FOLDER}; /sbin/ldconfig -p`)
  const needed = execFileSync('ldd', [library], { encoding: 'utf8' }).matchAll(/^\s*(\S+) => (\/\S+)/gm)
  for (const [, name = '', file = ''] of needed) {
    if (!known.includes(`\t${name} (`)) await xen.dom0.push(path.posix.join(FOLDER, name), readFileSync(file))
  }
  // It looks for Xen's libraries by names without a version, which only packages for compiling have.
  const links = ['libxenctrl.so', 'libxenstore.so'].map((name) => {
    const versioned = known.match(new RegExp(`=> (/\\S*/${name.replace('.', '\\.')}[.0-9]*)$`, 'm'))?.[1]
    return versioned === undefined ? ':' : `ln -sf ${versioned} ${FOLDER}/${name}`
  })
  await xen.dom0.run(links.join('; '))
  const there = path.posix.join(FOLDER, path.basename(library))
  await xen.dom0.push(there, readFileSync(library))
  return there
}
