/** The version of the native library's ABI this package speaks; CA_ABI_VERSION in cloudapp.h. */
export const ABI_VERSION = 1

/** Bytes of a cursor; CA_CURSOR_SIZE. */
export const CURSOR_SIZE = 2048

/** u64 words of a status buffer; CA_STATUS_WORDS. */
export const STATUS_WORDS = 8

/** The types that may cross: no structs by value, no callbacks. */
export type NativeType = 'i32' | 'u32' | 'u64' | 'buf'

/** Memory handed to the native side for the time of one call. */
export type NativeBuffer = Uint8Array | BigUint64Array

/**
 * The signature table every FFI backend binds from: name → [result, arguments]. One line per function of
 * native/libvmi-shim/include/cloudapp.h, in its order.
 */
export const SIGNATURES = {
  ca_abi_version: ['i32', []],
  ca_last_error: ['i32', ['buf', 'u32']],
  ca_mem_open_file: ['i32', ['buf', 'buf', 'u32', 'u32']],
  ca_mem_close: ['i32', ['i32']],
  ca_mem_revoke: ['i32', ['i32']],
  ca_mem_invalidate: ['i32', ['i32']],
  ca_mem_end: ['u64', ['i32']],
  ca_read: ['i32', ['i32', 'u32', 'u32', 'buf', 'u32', 'buf', 'u32', 'buf', 'u32', 'buf', 'u32', 'buf', 'buf']],
  ca_write: ['i32', ['i32', 'u32', 'u32', 'u64', 'u64', 'buf', 'u32', 'buf', 'buf']],
  ca_walk: ['i32', ['i32', 'u32', 'u32', 'buf', 'u32', 'buf', 'u32', 'u32', 'buf', 'buf']],
  ca_pages: ['i32', ['i32', 'u32', 'u32', 'u64', 'u64', 'u64', 'u32', 'u32', 'buf', 'u32', 'buf', 'buf']],
  ca_search: [
    'i32',
    ['i32', 'u32', 'u32', 'u64', 'u64', 'u64', 'buf', 'u32', 'u32', 'u32', 'u32', 'buf', 'u32', 'buf', 'buf'],
  ],
  ca_digest: ['i32', ['i32', 'u32', 'u32', 'u64', 'u64', 'u32', 'buf', 'buf', 'buf', 'buf']],
  // native/libvmi-shim/include/cloudapp_xen.h
  ca_xen_domains: ['i32', ['u32', 'buf', 'u32']],
  ca_xen_version: ['i32', []],
  ca_xen_store: ['i32', ['buf', 'buf', 'u32']],
  ca_xen_open: ['i32', ['u32', 'u32', 'u64']],
  ca_xen_probe: ['i32', ['i32']],
  ca_xen_counts: ['i32', ['i32', 'buf']],
  ca_xen_vcpu: ['i32', ['u32', 'u32', 'buf']],
  ca_xen_pause: ['i32', ['u32']],
  ca_xen_unpause: ['i32', ['u32']],
  // native/libvmi-shim/include/cloudapp_vchan.h
  ca_poll_new: ['i32', []],
  ca_poll_join: ['i32', ['i32', 'i32']],
  ca_evtchn_open: ['i32', ['u32', 'u32', 'buf']],
  ca_domain_lives: ['i32', ['u32']],
  ca_evtchn_notify: ['i32', ['i32', 'u32']],
  ca_evtchn_unmask: ['i32', ['i32', 'u32']],
  ca_evtchn_close: ['i32', ['i32']],
  ca_grants_share: ['i32', ['u32', 'u32', 'u32', 'buf']],
  ca_grants_map: ['i32', ['u32', 'u32', 'u32', 'buf']],
  ca_grants_read: ['i32', ['i32', 'u64', 'buf', 'u32']],
  ca_grants_write: ['i32', ['i32', 'u64', 'buf', 'u32']],
  ca_grants_notify: ['i32', ['i32', 'u64', 'u32']],
  ca_grants_close: ['i32', ['i32']],
  ca_vchan_serve: ['i32', ['u32', 'u32', 'u32', 'buf']],
  ca_vchan_connect: ['i32', ['u32', 'u32', 'u32', 'buf']],
  ca_vchan_pair: ['i32', ['u32', 'buf', 'buf']],
  ca_vchan_turn: ['i32', ['i32', 'u32', 'u32', 'buf', 'u32', 'buf', 'u32', 'buf']],
  ca_vchan_close: ['i32', ['i32']],
  // native/libvmi-shim/include/cloudapp_events.h
  ca_ring_create: ['i32', ['u32', 'buf']],
  ca_ring_close: ['i32', ['i32']],
  ca_ring_drain: ['i32', ['i32', 'buf', 'u32']],
  ca_ring_counts: ['i32', ['i32', 'u32', 'buf']],
  // native/libvmi-shim/include/cloudapp_libvmi.h
  ca_libvmi_open: ['i32', ['buf', 'u32', 'buf']],
  ca_libvmi_vcpus: ['i32', ['i32']],
  ca_libvmi_vcpu: ['i32', ['i32', 'u32', 'buf']],
} as const satisfies Record<string, readonly [result: NativeType, args: readonly NativeType[]]>

type Argument<T> = T extends 'buf' ? NativeBuffer : T extends 'u64' ? bigint : number
type Result<T> = T extends 'u64' ? bigint : number
type Arguments<T extends readonly NativeType[]> = { -readonly [I in keyof T]: Argument<T[I]> }

/** The native library as functions; the same whichever backend bound it. u64 is always a bigint. */
export type Shim = {
  readonly [K in keyof typeof SIGNATURES]: (
    ...args: Arguments<(typeof SIGNATURES)[K][1]>
  ) => Result<(typeof SIGNATURES)[K][0]>
}

/** A bound function before its types are known. */
export type NativeCall = (...args: unknown[]) => unknown

/** What an FFI backend offers; throws whatever it throws when the library or a function is missing. */
export interface NativeLibrary {
  bind(name: string, result: NativeType, args: readonly NativeType[]): NativeCall
}

/** Return values that are no error; enum ca_error. */
export const CA_OK = 0
export const CA_MORE = 1

/** Flags of the verbs and of ca_mem_open_file. */
export const CA_KEEP = 1
export const CA_ARMED = 2
export const CA_OPEN_WRITE = 1
/** Of ca_xen_open: a domain that may map the other and perhaps nothing else. */
export const CA_XEN_DIRECT = 256
