import type { WalkResult } from '../../memory.js'
import type { Module } from '../modules.js'
import { fixedText, view } from '../read.js'
import type { UnlistedCode } from './code.js'
import type { Candidate } from './hit.js'
import type { Kernel } from './kernel.js'

/** enum module_state, include/linux/module.h. */
const STATES = ['live', 'coming', 'going', 'unformed'] as const
const MODULE_LIMIT = 16_384
const NAME_LENGTH = 56
/** Largest module we believe in: one that says it is larger is not a module. */
const MAX_MODULE_BYTES = 256n << 20n

/** Ranges of unlisted code for which a module is looked for. */
const MAX_NAMED = 64

/** A module is unformed while it is loaded and unloaded: such a state may come back at every look at a busy guest. */
const LOOKS = { live: 4, unformed: 12, unknown: 16 } as const

/** A range of code no book lists, with the module it belongs to where one was found. */
export interface UnlistedOwner extends UnlistedCode {
  readonly module?: { readonly name: string; readonly address: bigint; readonly state: string; readonly size: bigint }
}

/** Modules that the module list, the kobjects (/sys/module) and executable memory do not agree on. */
export async function hiddenModules(
  kernel: Kernel,
  listed: readonly Module[],
  owners: readonly UnlistedOwner[],
  options: { readonly signal?: AbortSignal },
): Promise<Candidate[]> {
  const kobjects = await moduleKobjects(kernel, options)
  const candidates: Candidate[] = []
  const inList = new Set(listed.map((module) => module.module))
  const unlistedByModule = new Map<bigint, UnlistedOwner>()
  for (const owner of owners) {
    if (owner.module !== undefined) unlistedByModule.set(owner.module.address, owner)
  }
  for (const [address, owner] of unlistedByModule) {
    if (owner.module === undefined || inList.has(address)) continue
    const missing = kobjects.has(address) ? ['the module list'] : ['the module list', 'the module kobjects']
    candidates.push(hidden(owner.module.name, address, owner.module.state, missing, owner))
  }
  for (const [address, name] of kobjects) {
    if (inList.has(address) || unlistedByModule.has(address)) continue
    candidates.push(hidden(name, address, 'unknown', ['the module list'], undefined))
  }
  for (const module of listed) {
    if (module.state === 'live' && !kobjects.has(module.module)) {
      candidates.push(hidden(module.name, module.module, 'live', ['the module kobjects'], undefined))
    }
  }
  // Last: a guest can have any amount of stray code, and only so many candidates are kept.
  candidates.push(...owners.filter((owner) => owner.module === undefined).map(strayCode))
  return candidates
}

function hidden(
  name: string,
  address: bigint,
  state: string,
  missingFrom: readonly string[],
  owner: UnlistedOwner | undefined,
): Candidate {
  const seenIn = ['the module list', 'the module kobjects'].filter((book) => !missingFrom.includes(book))
  if (owner !== undefined) seenIn.push('executable memory')
  const hit: Candidate['hit'] = {
    id: `hidden-module:${name}:${address.toString(16)}`,
    kind: 'hidden-module',
    title: `Hidden kernel module ${name}: found in ${seenIn.join(', ')}, not in ${missingFrom.join(' and ')}`,
    severity: 'critical',
    evidence: {
      module: name,
      data: {
        struct: address,
        state,
        seenIn,
        missingFrom: [...missingFrom],
        ...(owner === undefined
          ? {}
          : { text: owner.start, textBytes: owner.end - owner.start, bytes: owner.module?.size ?? 0n }),
      },
    },
  }
  const looks = state === 'unformed' ? LOOKS.unformed : LOOKS.live
  return { hit, identity: `${name}:${address}:${owner?.physical ?? 0n}:${state}`, looks }
}

function strayCode({ start, end, physical }: UnlistedCode): Candidate {
  return {
    hit: {
      id: `unlisted-code:${start.toString(16)}`,
      kind: 'unlisted-code',
      title: `Executable kernel memory that belongs to no module, tracer, probe or BPF program: ${end - start} bytes at 0x${start.toString(16)}`,
      severity: 'high',
      evidence: { data: { start, bytes: end - start, physical } },
    },
    identity: `code:${start}:${end}:${physical}`,
    looks: LOOKS.unknown,
  }
}

/** Every module that has a kobject in module_kset: address of its struct module, and its name. */
async function moduleKobjects(kernel: Kernel, options: { signal?: AbortSignal }): Promise<Map<bigint, string>> {
  const what = 'the list of module kobjects'
  const kset = await kernel.pointer(kernel.symbol('module_kset'), options, what)
  const kobj = kernel.offset('module_kobject.kobj')
  const mod = kernel.offset('module_kobject.mod') - kobj
  const [result] = (await kernel.walk(
    [
      {
        kind: 'list',
        space: kernel.space,
        head: kset + BigInt(kernel.offset('kset.list')),
        node: kernel.offset('kobject.entry'),
        columns: [
          { path: [mod], size: 8 },
          { path: [mod, kernel.offset('module.name')], size: NAME_LENGTH },
        ],
        limit: MODULE_LIMIT,
      },
    ],
    options,
    () => ({ what }),
  )) as [WalkResult]
  const [mods, names] = result.columns as [Uint8Array, Uint8Array]
  const pointers = view(mods)
  const found = new Map<bigint, string>()
  for (let row = 0; row < result.rows; row++) {
    // Built-in code with parameters has a kobject and no module.
    if (result.cells[2 * row] !== 0 || result.cells[2 * row + 1] !== 0) continue
    found.set(
      pointers.getBigUint64(8 * row, true),
      fixedText(names.subarray(row * NAME_LENGTH, (row + 1) * NAME_LENGTH)),
    )
  }
  return found
}

/** Looks for the struct module each range of unlisted code belongs to: module memory that holds a pointer to it. */
export async function nameUnlisted(
  kernel: Kernel,
  unlisted: readonly UnlistedCode[],
  options: { readonly signal?: AbortSignal },
): Promise<UnlistedOwner[]> {
  const base = kernel.has('module.mem')
    ? kernel.offset('module.mem') + kernel.offset('module_memory.base')
    : kernel.offset('module.core_layout') + kernel.offset('module_layout.base')
  const size = kernel.has('module.mem')
    ? kernel.offset('module.mem') + kernel.offset('module_memory.size')
    : kernel.offset('module.core_layout') + kernel.offset('module_layout.size')
  const named: UnlistedOwner[] = []
  for (let i = 0; i < Math.min(unlisted.length, MAX_NAMED); i += 16) {
    const some = unlisted.slice(i, i + 16)
    const found = await kernel.memory.search(
      {
        space: kernel.space,
        start: 0xffff_ffff_8000_0000n,
        end: 0xffff_ffff_ff00_0000n,
        patterns: some.map(({ start }) => new Uint8Array(new BigUint64Array([start]).buffer)),
        align: 8,
        limit: 4096,
      },
      options,
    )
    const candidates = found.matches.map((match) => ({ code: match.pattern, address: match.at - BigInt(base) }))
    // Three requests however many matches: any number of pointers to its code may be the guest's doing.
    const fields = [
      { offset: kernel.offset('module.name'), length: NAME_LENGTH },
      { offset: kernel.offset('module.state'), length: 4 },
      { offset: size, length: 4 },
    ]
    const records = await kernel.memory.read(
      fields.map(({ offset, length }) => ({
        space: kernel.space,
        at: BigUint64Array.from(candidates, ({ address }) => address + BigInt(offset)),
        length,
      })),
      options,
    )
    const [names, states, sizes] = records.map(({ bytes }) => bytes) as [Uint8Array, Uint8Array, Uint8Array]
    const unread = new Set(records.flatMap(({ faults }) => faults.map(({ index }) => index)))
    const modules = new Map<number, NonNullable<UnlistedOwner['module']>>()
    candidates.forEach(({ code, address }, k) => {
      if (unread.has(k)) return
      const label = fixedText(names.subarray(k * NAME_LENGTH, (k + 1) * NAME_LENGTH))
      const phase = STATES[view(states).getUint32(4 * k, true)]
      const bytes = view(sizes).getUint32(4 * k, true)
      if (!/^[\w-]{1,55}$/.test(label) || phase === undefined || bytes > MAX_MODULE_BYTES || bytes === 0) return
      modules.set(code, { name: label, address, state: phase, size: BigInt(bytes) })
    })
    some.forEach((code, k) => {
      const module = modules.get(k)
      named.push(module === undefined ? code : { ...code, module })
    })
  }
  // Each search goes over all module memory.
  return [...named, ...unlisted.slice(named.length)]
}
