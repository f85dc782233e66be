import { type AddressRange, ALL_ADDRESSES, meetRanges, rangesWithin } from './ranges.js'

/**
 * Which memory may be reached. A part that is absent can not be reached at all; a scope with no parts reaches nothing.
 * (A grant **without** a memory scope reaches everything.)
 */
export interface MemoryScope {
  /** Guest-physical addresses. */
  readonly physical?: readonly AddressRange[]
  /** Virtual addresses, translated by the kernel's page table. */
  readonly kernel?: readonly AddressRange[]
  /** Virtual addresses inside a process; which processes, the `processes` caveat says. */
  readonly process?: readonly AddressRange[]
}

/** Some processes: those that fulfil each condition given. At least one is. */
export interface ProcessScope {
  /** The kernel's name of the process (comm, at most 15 bytes), equal to this. */
  readonly name?: string
  /** In this cgroup or one below it: an absolute path of cgroup v2, `/system.slice/nginx.service`. */
  readonly cgroup?: string
}

/** What a block that names processes and no memory reaches: those processes' memory, and no other. */
export const PROCESS_MEMORY: MemoryScope = { process: ALL_ADDRESSES }

const PARTS = ['physical', 'kernel', 'process'] as const

export function memoryWithin(inner: MemoryScope, outer: MemoryScope): boolean {
  return PARTS.every((part) => {
    const has = inner[part]
    return has === undefined || rangesWithin(has, outer[part] ?? [])
  })
}

export function meetMemory(a: MemoryScope, b: MemoryScope): MemoryScope {
  const out: { -readonly [K in keyof MemoryScope]: readonly AddressRange[] } = {}
  for (const part of PARTS) {
    const x = a[part]
    const y = b[part]
    if (x === undefined || y === undefined) continue
    const both = meetRanges(x, y)
    if (both.length > 0) out[part] = both
  }
  return out
}

function processWithin(inner: ProcessScope, outer: ProcessScope): boolean {
  if (outer.name !== undefined && inner.name !== outer.name) return false
  return outer.cgroup === undefined || (inner.cgroup !== undefined && inCgroup(inner.cgroup, outer.cgroup))
}

/** True if `path` is `group` or below it. */
export function inCgroup(path: string, group: string): boolean {
  if (!path.startsWith(group)) return false
  return path.length === group.length || group === '/' || path.charAt(group.length) === '/'
}

/**
 * True if each scope of `inner` lies in one of `outer`. Sound and decidable; a scope that only two of `outer` cover
 * together counts as outside (no scope can be split, so none is lost).
 */
export function processesWithin(inner: readonly ProcessScope[], outer: readonly ProcessScope[]): boolean {
  return inner.every((scope) => outer.some((cover) => processWithin(scope, cover)))
}

/** True if a process of this name and cgroup is in one of the scopes. An unknown cgroup (`undefined`) is in none. */
export function processInScope(
  scopes: readonly ProcessScope[],
  process: { readonly name: string; readonly cgroup?: string | undefined },
): boolean {
  return scopes.some((scope) => {
    if (scope.name !== undefined && scope.name !== process.name) return false
    if (scope.cgroup === undefined) return true
    return process.cgroup !== undefined && inCgroup(process.cgroup, scope.cgroup)
  })
}

/** Total order of the encoded form, so that a list of scopes has one spelling. */
export function compareProcesses(a: ProcessScope, b: ProcessScope): number {
  return compareText(a.name ?? '', b.name ?? '') || compareText(a.cgroup ?? '', b.cgroup ?? '')
}

function compareText(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b))
}

const NAME_BYTES = 15
const CGROUP_BYTES = 255

/** Why `scope` is not a well-formed process scope, or undefined if it is. */
export function processScopeFault(scope: ProcessScope): string | undefined {
  const { name, cgroup, ...unknown } = scope
  if (Object.keys(unknown).length > 0) return 'knows of a process only name and cgroup'
  if (name === undefined && cgroup === undefined) return 'a process scope needs a name or a cgroup'
  if (name !== undefined) {
    // TASK_COMM_LEN, include/linux/sched.h: 16 bytes with the NUL.
    const bytes = Buffer.byteLength(name)
    if (bytes < 1 || bytes > NAME_BYTES || name.includes('\0')) return `a process name has 1 to ${NAME_BYTES} bytes`
  }
  if (cgroup !== undefined) {
    const plain = cgroup === '/' || /^(?:\/(?!\.{1,2}(?:\/|$))[^/\0]+)+$/.test(cgroup)
    if (!plain || Buffer.byteLength(cgroup) > CGROUP_BYTES) {
      return `a cgroup is an absolute path of at most ${CGROUP_BYTES} bytes with no '.', '..' or empty part`
    }
  }
  return undefined
}
