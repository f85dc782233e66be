export { type DumpOptions, dumpElf } from './dump.js'
export * from './events/index.js'
export * from './guest.js'
export * from './linux/index.js'
export type { Evidence, Hit, HitKind } from './linux/integrity/hit.js'
export {
  CHECKS as INTEGRITY_CHECKS,
  type Check as IntegrityCheck,
  crossView,
  type IntegrityOptions,
  type IntegrityReport,
  integrity,
} from './linux/integrity/integrity.js'
export { LocalMemory, type LocalMemoryOptions, type LocalReaderSync, type PauseState, type RamRegion } from './local.js'
export * from './memory.js'
export { openElf } from './sources/elf.js'
export { type LibvmiOptions, openLibvmi } from './sources/libvmi.js'
export { openLime } from './sources/lime.js'
export { LocalVm, type LocalVmParts } from './sources/local-vm.js'
export { openVm } from './sources/open.js'
export { openQemu, type QemuOptions } from './sources/qemu.js'
export { openRaw, type RawOptions } from './sources/raw.js'
export { recoverVms } from './sources/recover.js'
export type { RecoveredVm } from './sources/recovered.js'
export type { SnapshotOptions } from './sources/snapshot.js'
export { openXen, type XenOptions } from './sources/xen.js'
export { openXenDirect, type XenDirectOptions, type XenDirectRights } from './sources/xen-direct.js'
