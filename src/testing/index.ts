/**
 * What an author of a service domain tests detectors with: a Linux guest in a buffer, with no VM and no native code.
 *
 * @packageDocumentation
 */
export type { PatchOptions } from './attacks.js'
export { TestBroker, type TestDelegation, type TestSource, testDelegation } from './delegation.js'
export type { SyntheticEvent } from './events.js'
export { SyntheticGuest, syntheticGuest } from './guest.js'
export type { ModuleBook, ModuleSpec, SyntheticModule } from './kernel/modules.js'
export type { RunState } from './kernel/runqueues.js'
export type { SyntheticTask, TaskBook, TaskSpec, ThreadSpec } from './kernel/tasks.js'
export type { LieList, Lies } from './lies.js'
export type { StructRef } from './machine/structs.js'
export { BufferMemory, type BufferMemoryOptions } from './memory.js'
export type { SyntheticGuestOptions } from './options.js'
export type { SyntheticVmOptions } from './vm.js'
