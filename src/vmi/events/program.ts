import type { Space } from '../memory.js'

/** Registers of the vCPU at the event: struct vm_event_regs_x86 (xen/vm_event.h). The order is enum ca_register's. */
export const EVENT_REGISTERS = [
  'rax',
  'rcx',
  'rdx',
  'rbx',
  'rsp',
  'rbp',
  'rsi',
  'rdi',
  'r8',
  'r9',
  'r10',
  'r11',
  'r12',
  'r13',
  'r14',
  'r15',
  'rip',
  'rflags',
  'cr0',
  'cr2',
  'cr3',
  'cr4',
  'dr7',
  'efer',
  'fsBase',
  'gsBase',
  'kernelGsBase',
] as const
export type EventRegister = (typeof EVENT_REGISTERS)[number]

/**
 * What a trap tells beside the registers, and which traps tell it. The order is enum ca_field's, from 1 on.
 *
 * - `newValue`, `oldValue`: of the register or MSR that is written
 * - `leaf`, `subleaf`: EAX and ECX of the CPUID
 * - `descriptor`: the table (VM_EVENT_DESC_* of xen/vm_event.h: 1 IDTR, 2 GDTR, 3 LDTR, 4 TR); `isWrite`: 1 for a write
 */
export const EVENT_FIELDS = {
  newValue: ['register', 'msr'],
  oldValue: ['register', 'msr'],
  leaf: ['cpuid'],
  subleaf: ['cpuid'],
  descriptor: ['descriptor'],
  isWrite: ['descriptor'],
} as const satisfies Record<string, readonly Trap['kind'][]>
export type EventField = keyof typeof EVENT_FIELDS

/** Traps that tell of the vCPU's own state: the right `events.register`. */
export type RegisterTrap =
  /** A write to a control register; `changed` leaves out those that write what is there already. */
  | { readonly kind: 'register'; readonly register: 'cr0' | 'cr3' | 'cr4'; readonly changed?: boolean }
  /** Every CPUID instruction; narrow by a predicate on `leaf`. */
  | { readonly kind: 'cpuid' }
  /** A write to this model-specific register. */
  | { readonly kind: 'msr'; readonly msr: number }
  /** Access to IDTR, GDTR, LDTR or TR. */
  | { readonly kind: 'descriptor' }
  /** HVMOP_guest_request_vm_event, which a guest calls to be noticed. */
  | { readonly kind: 'guest-request' }

/** The instruction at a virtual address is about to be executed: the right `events.memory`. */
export interface BreakpointTrap {
  readonly kind: 'breakpoint'
  /** First byte of an instruction. */
  readonly at: bigint
  /** The address space it lies in. Other processes that share the page stop there too. */
  readonly space: Space
}

/**
 * What makes an event. Memory-access and single-step events need a hypervisor with them on this CPU: Xen 4.17 has them on
 * Intel only (and no host this library is tested on has), so they are refused, with that reason.
 */
export type Trap = RegisterTrap | BreakpointTrap

/** What two operands of 64 bits make one of; comparisons are unsigned and give 0 or 1, and so do `and` and `or`. */
export type BinaryOperator =
  | '+'
  | '-'
  | '&'
  | '|'
  | '^'
  | '<<'
  | '>>'
  | '=='
  | '!='
  | '<'
  | '<='
  | '>'
  | '>='
  | 'and'
  | 'or'

/**
 * An expression over the event, of unsigned 64-bit words: `['==', { register: 'rax' }, 59n]`.
 *
 * `['load', address, bytes]` reads 1, 2, 4 or 8 bytes in the vCPU's present address space. An address that can not be
 * read makes the whole predicate false.
 */
export type Expression =
  | bigint
  | { readonly register: EventRegister }
  | { readonly field: EventField }
  | readonly ['load', Expression, 1 | 2 | 4 | 8]
  | readonly ['not', Expression]
  | readonly [BinaryOperator, Expression, Expression]

/**
 * An address at the event: starting from the register's value, for each offset of `path` but the last, the 8 bytes at
 * value + offset are the next value; the address is value + last offset. `[0]` by default; at most 4 offsets.
 */
export interface CapturedAddress {
  readonly register: EventRegister
  readonly path?: readonly number[]
}

/** A capture of one word. */
export type WordCapture = { readonly register: EventRegister } | { readonly field: EventField }

/** A capture of up to `bytes` bytes (at most 256), read in the vCPU's present address space; a string ends before its NUL. */
export type BytesCapture =
  | { readonly memory: CapturedAddress; readonly bytes: number }
  | { readonly string: CapturedAddress; readonly bytes: number }

/** What is recorded of each event, by the name it gets in the batch. At most 16. */
export type Captures = { readonly [name: string]: WordCapture | BytesCapture }

/**
 * What is sent to the hypervisor's side: data, not code. It is evaluated there, beside the event, within fixed bounds; the
 * vCPU never waits for who is told.
 *
 * @example
 * ```ts
 * import { Linux, openVm } from '@cloudapp/sdk'
 *
 * await using vm = await openVm('xen:web-1')
 * const linux = await Linux.attach(vm)
 * const opens = await vm.events?.subscribe({
 *   trap: await linux.breakpoint('do_sys_openat2'),
 *   captures: { flags: { memory: { register: 'rdx' }, bytes: 8 }, path: { string: { register: 'rsi' }, bytes: 64 } },
 *   rate: 10_000,
 * })
 * for await (const batch of opens ?? []) {
 *   for (let row = 0; row < batch.count; row++) console.log(batch.text('path', row))
 * }
 * ```
 */
export interface EventProgram<C extends Captures = Captures, T extends Trap = Trap> {
  readonly trap: T
  /** Events for which it is 0 are not told. */
  readonly predicate?: Expression
  readonly captures?: C
  /** How the vCPU goes on: as if nothing had been. There is no other answer yet. */
  readonly answer?: 'continue'
  /** Events a second at most, with a burst of one second's; what is more is dropped and counted. */
  readonly rate?: number
}

/** Bounds of a program; those of cloudapp_events.h. */
export const EVENT_LIMITS = {
  /** Operations of a compiled predicate. */
  predicate: 64,
  /** Words on its stack. */
  stack: 8,
  captures: 16,
  captureBytes: 256,
  path: 4,
  /** Programs of one VM at a time, of all subscribers together. */
  programs: 64,
  /** Different breakpoints in one VM. */
  breakpoints: 64,
} as const
