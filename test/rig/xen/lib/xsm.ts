import { cpSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import path from 'node:path'
import { buildPolicy } from '../../../../src/host/policy.js'
import { hostMirror, Suite } from '../../lib/apt.js'
import { cached, keyOf } from '../../lib/cache.js'
import { run } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'
import { bootXen, type XenHost, type XenOptions } from './host.js'

const SUITE = 'bookworm'

/**
 * Debian's Xen has no XSM. This is the same source with it, and with nothing else that a PV dom0, PV and PVH guests do not
 * need, as it is compiled on every fresh machine. No MEM_SHARING: with it, FLASK panics at boot (DOMID_COW has no label).
 */
const CONFIG = [
  'EXPERT',
  'PV',
  'HVM',
  'GRANT_TABLE',
  'IOREQ_SERVER',
  'MEM_ACCESS',
  'SCHED_CREDIT',
  'TRACEBUFFER',
  'XSM',
  'XSM_FLASK',
  'XSM_FLASK_DEFAULT',
]

/** What Xen's policy is compiled from, and what the hypervisor was compiled against. */
const POLICY = ['tools/flask/policy', 'xen/xsm/flask/policy']

export interface XsmXen {
  /** The hypervisor, as QEMU's multiboot loader takes it. */
  readonly hypervisor: string
  /** Xen's own policy and nothing else: what the host boots with until another is loaded. */
  readonly policy: string
  /** A folder with those parts of Xen's source that its policy is made of; see `buildPolicy`. */
  readonly source: string
}

/** A Xen with XSM from Debian's source package. Built once, then cached. */
export async function xsmXen(options: RigOptions = {}): Promise<XsmXen> {
  const folder = await cached(
    'xen-xsm',
    keyOf(hostMirror(), SUITE, CONFIG, POLICY, 3),
    async (into) => {
      options.progress?.('building a Xen with XSM from the source of Debian (some minutes, once)')
      const suite = await Suite.open(SUITE, options, 'deb-src')
      const tree = path.join(into, 'tree')
      await suite.source('xen', tree, options)
      const wanted = path.join(into, 'config')
      writeFileSync(wanted, CONFIG.map((name) => `CONFIG_${name}=y\n`).join(''))
      const make = ['-s', '-C', path.join(tree, 'xen'), `-j${availableParallelism()}`]
      // The machine's own settings for other builds do not belong here.
      const env = { PATH: process.env.PATH, LC_ALL: 'C', KCONFIG_ALLCONFIG: wanted }
      await run('make', [...make, 'allnoconfig'], { ...options, env })
      await run('make', [...make, 'build'], { ...options, env, timeoutMs: 3_600_000 })
      cpSync(path.join(tree, 'xen/xen'), path.join(into, 'xen'))
      const source = path.join(into, 'source')
      for (const part of POLICY) {
        mkdirSync(path.join(source, path.dirname(part)), { recursive: true })
        cpSync(path.join(tree, part), path.join(source, part), { recursive: true })
      }
      writeFileSync(path.join(into, 'policy'), await buildPolicy({ module: '', changes: [], xenSource: source }))
      rmSync(tree, { recursive: true })
    },
    options,
  )
  const at = (name: string): string => path.join(folder, name)
  return { hypervisor: at('xen'), policy: at('policy'), source: at('source') }
}

/** Boots a Xen whose FLASK enforces Xen's own policy from the start. */
export async function bootXsm(options: XenOptions = {}): Promise<XenHost> {
  const { hypervisor, policy } = await xsmXen(options)
  return bootXen({ ...options, hypervisor, append: 'flask=enforcing', multiboot: [policy] })
}
