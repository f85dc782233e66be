import { randomBytes } from 'node:crypto'
import { checked, loadShim } from '../../native/shim.js'
import { VchanChannel, vchanInfo } from './vchan-channel.js'

/**
 * Both ends of a vchan inside this process, over plain memory and eventfds: the rings, bounds and wake-ups of the real one
 * without Xen. For tests.
 */
export function vchanPair(ring = 64 * 1024): [VchanChannel, VchanChannel] {
  const shim = loadShim()
  const handles = new Int32Array(2)
  const info = new Uint32Array(16)
  checked(shim, shim.ca_vchan_pair(ring, new Uint8Array(handles.buffer), new Uint8Array(info.buffer)))
  const binding = new Uint8Array(randomBytes(32))
  const end = (index: 0 | 1): VchanChannel => {
    const words = info.subarray(index * 8, index * 8 + 8)
    const peer = { kind: 'memory', name: index === 0 ? 'client' : 'server' } as const
    return new VchanChannel(shim, handles[index] as number, vchanInfo(words), peer, binding)
  }
  return [end(0), end(1)]
}
