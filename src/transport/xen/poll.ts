import { type OnReadOpts, Socket, type SocketConstructorOpts } from 'node:net'
import type { Shim } from '../../native/abi.js'
import { checked } from '../../native/shim.js'

/** Ends the polling; the device itself is not closed. Idempotent. */
export type StopPolling = () => void

/**
 * Lets the event loop read a device as it becomes readable, without a thread: a pipe's end is handed to Node, which would
 * not take a device, and then made to stand for it. `buffer` is where the bytes go, `onBytes` is told how many; `onEnd`, once,
 * that there will be no more.
 */
export function pollDevice(
  shim: Shim,
  device: number,
  buffer: Uint8Array,
  onBytes: (count: number) => void,
  onEnd: (error: Error | undefined) => void,
): StopPolling {
  const fd = checked(shim, shim.ca_poll_new())
  let stopped = false
  // The types of Node name `onread` for `connect` only; net.Socket takes it as well (documented since 12.10).
  const options: SocketConstructorOpts & { onread: OnReadOpts } = {
    fd,
    readable: true,
    writable: false,
    onread: {
      buffer,
      callback: (count) => {
        if (!stopped) onBytes(count)
        return !stopped
      },
    },
  }
  const socket = new Socket(options)
  // In this turn, before libuv looks at what the descriptor is.
  checked(shim, shim.ca_poll_join(fd, device))
  const end = (error?: Error) => {
    if (stopped) return
    stopped = true
    socket.destroy()
    onEnd(error)
  }
  socket.on('error', end)
  socket.on('close', () => end())
  return () => {
    stopped = true
    socket.destroy()
  }
}
