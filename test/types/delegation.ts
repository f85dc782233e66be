/**
 * What must compile and what must not, right by right: checked by `npm run typecheck`, which fails on a line below an
 * `@ts-expect-error` that compiles after all. Nothing here runs.
 */
import type { Delegation, Right } from '../../src/capabilities/index.js'
import type { GuestVm } from '../../src/vmi/guest.js'
import type { MemoryReader } from '../../src/vmi/memory.js'

declare const none: Delegation
declare const reader: Delegation<'memory.read'>
declare const writer: Delegation<'memory.write'>
declare const editor: Delegation<'memory.read' | 'memory.write'>
declare const watcher: Delegation<'vcpu.read' | 'vm.pause' | 'vm.info'>
declare const all: Delegation<Right>
declare const registers: Delegation<'events.register'>
declare const tracer: Delegation<'events.memory' | 'memory.read'>

/** What a right adds to a delegation that has none: every right stands here, so that a new one has to say its parts. */
type Parts = {
  'vm.info': 'info'
  'vm.pause': 'pause'
  'vm.clone': never
  'memory.read': 'memory' | 'processes'
  'memory.write': 'memory'
  'vcpu.read': 'vcpus'
  'vcpu.write': never
  'events.syscall': never
  'events.register': 'events'
  'events.memory': 'events'
  'network.observe': never
  'network.filter': never
  'disk.observe': never
  'disk.transform': never
}
type Added<R extends Right> = Exclude<keyof Delegation<R>, keyof Delegation>
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : false) : false
/** The names of the rights whose parts are not those of the table; and of the table's lines that are no rights. */
type Wrong = { [R in Right]: R extends keyof Parts ? (Same<Added<R>, Parts[R]> extends true ? never : R) : R }[Right]
export const everyRightHasItsParts: Same<Wrong | Exclude<keyof Parts, Right>, never> = true

declare function attach(vm: GuestVm): void
declare function attachToMemory(vm: GuestVm & { readonly memory: MemoryReader }): void

/** Parts that come with a right. */
export function parts(): unknown[] {
  return [
    reader.memory.read([]),
    reader.memory.walk([]),
    reader.memory.pages,
    reader.memory.search,
    reader.memory.digest,
    writer.memory.write([]),
    editor.memory.read([]),
    editor.memory.write([]),
    watcher.vcpus.registers(),
    watcher.pause(),
    watcher.info(),
    all.memory.read([]),
    all.memory.write([]),
    all.pause(),
    none.identity.uuid,
    none.kernel(),
    reader.processes(),
    none.budget(),
  ]
}

/** Parts that do not. */
export function missing(): unknown[] {
  return [
    // @ts-expect-error memory.write is not held
    reader.memory.write([]),
    // @ts-expect-error vcpu.read is not held
    reader.vcpus,
    // @ts-expect-error vm.pause is not held
    reader.pause(),
    // @ts-expect-error vm.info is not held
    reader.info(),
    // @ts-expect-error memory.read is not held
    writer.memory.read([]),
    // @ts-expect-error memory.read is not held
    writer.memory.walk([]),
    // @ts-expect-error memory.read is not held
    writer.processes(),
    // @ts-expect-error memory.read is not held
    writer.memory.digest,
    // @ts-expect-error no right on the memory is held
    watcher.memory,
    // @ts-expect-error no right on events is held
    reader.events,
    // @ts-expect-error nothing is held
    none.memory,
    // @ts-expect-error nothing is held
    none.info,
  ]
}

/** A narrower delegation where a wider one is needed, and the other way. */
export function assigning(): void {
  const narrow: Delegation<'memory.read'> = editor
  const nothing: Delegation = reader
  // @ts-expect-error memory.write is not held
  const wide: Delegation<'memory.read' | 'memory.write'> = reader
  // @ts-expect-error 'memory.erase' is no right
  type Wrong = Delegation<'memory.erase'>
  attach(reader)
  attach(watcher)
  attach(registers)
  attach(tracer)
  attachToMemory(reader)
  attachToMemory(editor)
  // @ts-expect-error memory can not be read
  attachToMemory(watcher)
  // @ts-expect-error memory can be written and not read
  attachToMemory(writer)
  void [narrow, nothing, wide, undefined as unknown as Wrong]
}

/** Attenuating narrows the type, and can not widen it. */
export async function attenuating(): Promise<void> {
  const info = await watcher.attenuate({ rights: ['vm.info'], expires: '1m', bytesPerSecond: 1 })
  await info.info()
  // @ts-expect-error vm.pause was given up
  await info.pause()
  // @ts-expect-error memory.read is not held
  await watcher.attenuate({ rights: ['memory.read'] })
  // @ts-expect-error not a limit there is
  await watcher.attenuate({ bytesPerMinute: 1 })
  const same = await watcher.attenuate({ uses: 3 })
  await same.pause()
  const text: `cloudapp1.${string}` = await reader.delegate({ to: 'ed25519:x', rights: ['memory.read'] })
  // @ts-expect-error somebody must be named
  await reader.delegate({ rights: ['memory.read'] })
  void text
}

/** Asking at run time widens the type. */
export async function asking(): Promise<void> {
  if (reader.has('vm.pause')) await reader.pause()
  const more = await reader.demand('memory.write')
  await more.memory.write([])
  await more.memory.read([])
}

/** Which traps a right allows, and what a program's captures make of its batches. */
export async function events(): Promise<void> {
  const breakpoint = { kind: 'breakpoint', at: 0n, space: 0n } as const
  await registers.events.subscribe({ trap: { kind: 'register', register: 'cr3' } })
  // @ts-expect-error events.memory is not held
  await registers.events.subscribe({ trap: breakpoint })
  // @ts-expect-error events.register is not held
  await tracer.events.subscribe({ trap: { kind: 'cpuid' } })
  await all.events.subscribe({ trap: breakpoint })
  await all.events.subscribe({ trap: { kind: 'msr', msr: 1 } })
  // @ts-expect-error no register there is
  await all.events.subscribe({ trap: { kind: 'register', register: 'cr2' } })
  // @ts-expect-error no such key
  await all.events.subscribe({ trap: breakpoint, predikate: 1n })

  const stream = await tracer.events.subscribe({
    trap: breakpoint,
    captures: { fd: { register: 'rdi' }, path: { string: { register: 'rsi' }, bytes: 64 } },
  })
  for await (const batch of stream) {
    const fd: BigUint64Array = batch.columns.fd
    const time: BigUint64Array = batch.columns.time
    const path: string = batch.text('path', 0)
    // @ts-expect-error bytes have no column
    batch.columns.path
    // @ts-expect-error nothing of this name is captured
    batch.columns.pid
    // @ts-expect-error fd is a word
    batch.bytes('fd', 0)
    void [fd, time, path]
  }
}
