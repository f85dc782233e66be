import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CloudAppError } from '../errors.js'
import { type Run, run } from './run.js'

/** Where the source of the Xen that runs is expected: its policy is compiled with ours, and is not copied into this package. */
export const DEFAULT_XEN_SOURCE = '/usr/src/xen'

/** Permissions that are taken out of the unconditional rules of Xen's own policy. */
export interface PolicyChange {
  readonly source: string
  readonly target: string
  readonly class: string
  readonly permissions: readonly string[]
}

export interface PolicyParts {
  /** A module in Xen's macros. */
  readonly module: string
  readonly changes: readonly PolicyChange[]
  /** The root of Xen's source, of the release of the hypervisor. `/usr/src/xen` by default. */
  readonly xenSource?: string
}

const POLICY = 'tools/flask/policy'
/** Shared with the hypervisor, which is compiled against them: so the source must be that of the hypervisor that runs. */
const SHARED = 'xen/xsm/flask/policy'

/**
 * Compiles Xen's own policy with a module of ours in it, as tools/flask/policy/Makefile.common does: the sections in their
 * order through m4(1), then checkpolicy(8).
 *
 * @returns The binary policy, for `xl loadpolicy` or as a boot module.
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` without Xen's policy there, `ERR_CLOUDAPP_UNSUPPORTED` without m4 or
 *   checkpolicy, `ERR_CLOUDAPP_SOURCE` with what the compiler said.
 */
export async function buildPolicy(parts: PolicyParts, runner: Run = run): Promise<Uint8Array> {
  const root = parts.xenSource ?? DEFAULT_XEN_SOURCE
  const folder = await mkdtemp(join(tmpdir(), 'cloudapp-policy-'))
  try {
    const module = join(folder, 'cloudapp.te')
    await writeFile(module, parts.module)
    const files = await sections(root, module)
    // -s: line marks, so that an error names the file. The numbers are the ones the macros want; they mean nothing without MLS.
    const defines = ['-D', 'self_contained_policy', '-D', 'mls_num_sens=16', '-D', 'mls_num_cats=256']
    const text = await runner('m4', ['-s', ...defines, ...files], { cwd: folder })
    const source = join(folder, 'policy.conf')
    await writeFile(source, withoutPermissions(text, parts.changes, module))
    const binary = join(folder, 'xenpolicy')
    // 30: the newest version of 4.17's hypervisor (POLICYDB_VERSION_MAX).
    await runner('checkpolicy', ['-t', 'Xen', '-c', '30', source, '-o', binary], { cwd: folder })
    return await readFile(binary)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** The files of a policy, in the order of POLICY_SECTIONS. */
async function sections(root: string, module: string): Promise<string[]> {
  const policy = join(root, POLICY)
  const shared = join(root, SHARED)
  let list: string
  let support: string[]
  try {
    list = await readFile(join(policy, 'modules', 'modules.conf'), 'utf8')
    support = (await readdir(join(policy, 'policy', 'support'))).filter((name) => name.endsWith('.spt')).sort()
    await readdir(shared)
  } catch (cause) {
    const how = `unpack the source of the Xen that runs there (apt-get source xen, with a deb-src entry), or name the folder`
    throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `there is no policy of Xen under ${root}: ${how}`, { cause })
  }
  const modules = [...list.matchAll(/^[ \t]*([a-z_]\w*)\s*=\s*on\s*$/gim)].map(([, name = '']) => name)
  const there = new Set(await readdir(join(policy, 'modules')))
  const ofModules = (ending: string): string[] =>
    modules
      .map((name) => `${name}${ending}`)
      .filter((name) => there.has(name))
      .map((name) => join(policy, 'modules', name))
  const at = (name: string): string => join(policy, 'policy', name)
  return [
    ...[join(shared, 'security_classes'), at('security_classes'), join(shared, 'initial_sids')],
    ...[join(shared, 'access_vectors'), at('access_vectors')],
    ...[...support.map((name) => join(policy, 'policy', 'support', name)), at('mls')],
    ...[...ofModules('.if'), at('global_tunables')],
    ...[...ofModules('.te'), module, at('users')],
    ...[...ofModules('.cons'), at('initial_sids'), at('device_contexts')],
  ]
}

/**
 * Takes permissions out of the `allow` rules of a policy whose macros are expanded, except in the file `ours`. A rule that is
 * left without permissions goes. Rules by attribute are not looked at: a `neverallow` in our module finds those.
 */
export function withoutPermissions(text: string, changes: readonly PolicyChange[], ours: string): string {
  if (changes.length === 0) return text
  const parts = text.split(/^(?=#line )/m)
  let inOurs = false
  return parts
    .map((part) => {
      const named = /^#line \d+ "([^"]*)"/.exec(part)?.[1]
      if (named !== undefined) inOurs = named === ours
      return inOurs ? part : part.replace(RULE, (rule, ...fields: string[]) => changed(rule, fields, changes))
    })
    .join('')
}

const RULE = /^([ \t]*(?:allow|auditallow))\s+(\w+)\s+(\w+)\s*:\s*(\w+)\s*(?:\{([^{}]*)\}|(\w+))\s*;/gm

function changed(rule: string, fields: readonly (string | undefined)[], changes: readonly PolicyChange[]): string {
  const [verb, source, target, name, many, one] = fields
  const gone = new Set(
    changes
      .filter((change) => change.source === source && change.target === target && change.class === name)
      .flatMap(({ permissions }) => permissions),
  )
  const held = (many ?? one ?? '').split(/\s+/).filter((word) => word !== '')
  const left = held.filter((permission) => !gone.has(permission))
  if (left.length === held.length) return rule
  return left.length === 0 ? '' : `${verb} ${source} ${target}:${name} { ${left.join(' ')} };`
}
