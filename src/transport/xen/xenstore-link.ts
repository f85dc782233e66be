import { close, constants, existsSync, openSync, writeSync } from 'node:fs'
import { connect } from 'node:net'
import { CloudAppError } from '../../errors.js'

/** Where xenstored listens in its own domain; elsewhere the kernel's device passes messages on. */
const SOCKET = '/run/xenstored/socket'
const DEVICE = '/dev/xen/xenbus'

/** The bytes to and from xenstored. */
export interface StoreLink {
  write(bytes: Uint8Array): void
  /** Idempotent; `onEnd` is not called for it. */
  close(): void
}

export interface StoreLinkEvents {
  onBytes(bytes: Uint8Array): void
  onEnd(error: Error | undefined): void
}

/** Opens what this domain has: the daemon's socket, or the kernel's device (which needs the native library). */
export async function openStoreLink(path: string | undefined, events: StoreLinkEvents): Promise<StoreLink> {
  const where = path ?? (existsSync(SOCKET) ? SOCKET : DEVICE)
  return where.startsWith('/dev/') ? openDevice(where, events) : openSocket(where, events)
}

async function openSocket(path: string, events: StoreLinkEvents): Promise<StoreLink> {
  const socket = connect(path)
  await new Promise<void>((done, fail) => {
    socket.once('connect', done)
    socket.once('error', (cause: NodeJS.ErrnoException) => fail(unreachable(path, cause)))
  })
  socket.removeAllListeners('error')
  let open = true
  let failure: Error | undefined
  socket.on('data', (bytes) => events.onBytes(bytes))
  socket.on('error', (error) => {
    failure = error
  })
  socket.on('close', () => {
    if (open) events.onEnd(failure)
    open = false
  })
  return {
    write: (bytes) => void socket.write(bytes),
    close: () => {
      open = false
      socket.destroy()
    },
  }
}

async function openDevice(path: string, events: StoreLinkEvents): Promise<StoreLink> {
  // Imported here: over the socket of xenstored nothing native is needed.
  const [{ pollDevice }, { loadShim }] = await Promise.all([import('./poll.js'), import('../../native/shim.js')])
  let device: number
  try {
    device = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
  } catch (cause) {
    throw unreachable(path, cause as NodeJS.ErrnoException)
  }
  let open = true
  const end = (error: Error | undefined) => {
    if (!open) return
    open = false
    close(device, () => {})
    events.onEnd(error)
  }
  const buffer = new Uint8Array(8192)
  const stop = pollDevice(loadShim(), device, buffer, (count) => events.onBytes(buffer.subarray(0, count)), end)
  return {
    // The kernel takes a whole message at a time and waits for nobody but xenstored.
    write: (bytes) => {
      try {
        writeSync(device, bytes)
      } catch (error) {
        stop()
        end(error as Error)
      }
    },
    close: () => {
      if (!open) return
      open = false
      stop()
      close(device, () => {})
    },
  }
}

function unreachable(path: string, cause: NodeJS.ErrnoException): CloudAppError {
  if (cause.code === 'EACCES' || cause.code === 'EPERM') {
    return new CloudAppError('ERR_CLOUDAPP_DENIED', `This user may not open xenstore (${path}): run as root`, { cause })
  }
  const fix = 'is this a domain of Xen, with xenfs or xenstored?'
  return new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `There is no xenstore at ${path} (${cause.code}): ${fix}`, {
    cause,
    details: { path },
  })
}
