import { createHash } from 'node:crypto'

/**
 * What ties a proof of possession to one channel: facts both ends see for themselves and a middleman would see
 * otherwise. Both ends must make the same bytes.
 */
export type TransportBinding =
  | {
      readonly transport: 'unix'
      /**
       * The connecting process: the broker takes it from SO_PEERCRED, the holder knows its own. (A holder in a PID
       * namespace of its own sees another pid than the broker and is refused.)
       */
      readonly clientPid: number
      readonly clientUid: number
    }
  | {
      readonly transport: 'vchan'
      readonly clientDomid: number
      readonly clientUuid: string
      readonly brokerDomid: number
      readonly brokerUuid: string
    }
  | {
      readonly transport: 'tls'
      /** 32 bytes of the TLS exporter (RFC 9266, label EXPORTER-Channel-Binding). */
      readonly exporter: Uint8Array
    }
  | {
      readonly transport: 'process'
      /** Made by the broker in the same process for this session. */
      readonly session: string
    }

/** SHA-256 over an unambiguous spelling of the binding: what goes into the proof. */
export function bindingHash(binding: TransportBinding): Uint8Array {
  const hash = createHash('sha256').update('cloudapp binding v1\0')
  // Each part is preceded by its length, so that two bindings never have one spelling.
  for (const part of parts(binding)) {
    const bytes = typeof part === 'string' ? Buffer.from(part) : part
    const length = Buffer.alloc(4)
    length.writeUInt32BE(bytes.length)
    hash.update(length).update(bytes)
  }
  return hash.digest()
}

function parts(binding: TransportBinding): (string | Uint8Array)[] {
  switch (binding.transport) {
    case 'unix': {
      return ['unix', `${binding.clientPid}`, `${binding.clientUid}`]
    }
    case 'vchan': {
      const { clientDomid, clientUuid, brokerDomid, brokerUuid } = binding
      return ['vchan', `${clientDomid}`, clientUuid, `${brokerDomid}`, brokerUuid]
    }
    case 'tls':
      return ['tls', binding.exporter]
    case 'process':
      return ['process', binding.session]
  }
}
