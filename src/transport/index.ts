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
