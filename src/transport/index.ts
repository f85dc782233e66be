export type { Channel, ChannelListener, PeerIdentity } from './channel.js'
export {
  type ConnectEndpointOptions,
  connectEndpoint,
  type ListenEndpointOptions,
  listenEndpoint,
  type ParsedEndpoint,
  parseEndpoint,
} from './endpoint.js'
export { decodeBody, encodeFrame, FRAME_LIMITS, type FrameLimits, FrameReader } from './frames.js'
export { GUARD_LIMITS, type GuardLimits } from './guard.js'
export { memoryChannelPair } from './memory.js'
export { openSession, SESSION_LIMITS, type Session, type SessionLimits, type SessionOptions } from './session.js'
export { type ConnectTlsOptions, connectTls, type ListenTlsOptions, listenTls, type TlsKey } from './tls.js'
export { type ConnectUnixOptions, connectUnix, type ListenUnixOptions, listenUnix } from './unix.js'
export { EventChannel } from './xen/event-channel.js'
export { GRANT_PAGE, GrantedPages, GrantTable } from './xen/grant-table.js'
export { findDomain, type Introduction, introduce, withdraw } from './xen/introductions.js'
export { type ServeVchanOptions, serveVchan, VCHAN_RING } from './xen/vchan.js'
export { type ConnectVchanOptions, connectVchan } from './xen/vchan-connect.js'
export {
  StoreKeys,
  type StorePermission,
  StoreTransaction,
  XenStore,
  type XenStoreOptions,
} from './xen/xenstore.js'
export type { StoreEvent } from './xen/xenstore-watch.js'
