import { EventChannel } from './event-channel.js'

/** Signals that are timed; the least disturbed one counts. */
const SIGNALS = 8

/** us, whatever was measured: what a look at a ring is worth at least, and may hold up an event loop for at most. */
const LEAST = 10
const MOST = 2000

let measured: Promise<number> | undefined

/**
 * What it costs this process to go to sleep and be woken by another domain, in us: some tens on a machine, about a thousand
 * where Xen itself is emulated. Who waits for a peer looks for that long whether it moves before going to sleep, so that waiting
 * costs at most twice what the better choice would have. Measured once, by signalling itself; doubled, as the peer pays for the
 * signal and, when it finds the ring as a sleeper left it, sleeps in its turn.
 */
export function wakeCost(self: number): Promise<number> {
  measured ??= measure(self).catch(() => LEAST)
  return measured
}

async function measure(self: number): Promise<number> {
  await using ear = EventChannel.allocate(self)
  await using mouth = EventChannel.bind(self, ear.port)
  // A domain may be kept from signalling itself.
  const signal = AbortSignal.timeout(1000)
  let best = MOST
  for (let i = 0; i < SIGNALS; i++) {
    const begun = performance.now()
    mouth.notify()
    await ear.wait({ signal })
    best = Math.min(best, 2 * (performance.now() - begun) * 1000)
  }
  return Math.max(LEAST, Math.round(best))
}
