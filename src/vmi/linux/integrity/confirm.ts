import { setTimeout as sleep } from 'node:timers/promises'
import { CloudAppError } from '../../../errors.js'
import type { Candidate, Hit } from './hit.js'

/** What confirming needs from its surroundings. */
export interface Pace {
  /**
   * A guest clock (jiffies): tells whether the guest ran between two looks. `still` if it can not run at all now: it is
   * paused, or a snapshot.
   */
  clock(): Promise<{ readonly now: bigint; readonly still: boolean }>
  readonly signal?: AbortSignal
}

/** The guest is given this long to run on between two looks; one that does not is idle, or starved. */
const STANDSTILL_MS = 500

/** Looks for a candidate that is another at the same place. */
const MOVED_LOOKS = 16

/**
 * Looks again until every candidate has been seen in as many looks as it needs, or is gone. A guest that runs while it
 * is looked at shows things half done: a process in the pid table but not yet in the list, a module out of its list
 * but not yet out of memory. Such a state ends by itself; what is hidden stays.
 *
 * Looks are spaced at random, so that they do not fall into step with what the guest repeats.
 */
export async function confirm(look: () => Promise<Candidate[]>, pace: Pace): Promise<Hit[]> {
  let standing = await look()
  if (standing.length === 0) return []
  if ((await pace.clock()).still) {
    // It may have stopped during the first look. More than one more shows nothing new.
    return (await look()).map(({ hit }) => ({ ...hit, confidence: 'medium' }))
  }
  const confirmed: Hit[] = []
  let ran = true
  for (let looks = 1; standing.length > 0; looks++) {
    for (const { hit } of standing.filter((candidate) => candidate.looks <= looks)) {
      confirmed.push({ ...hit, confidence: ran ? 'high' : 'medium' })
    }
    standing = standing.filter((candidate) => candidate.looks > looks)
    if (standing.length === 0) break
    ran = (await untilTheGuestRan(pace)) && ran
    const seen = await look()
    const identities = new Set(seen.map((candidate) => candidate.identity))
    const places = new Map(seen.map((candidate) => [candidate.place, candidate]))
    standing = standing.flatMap((candidate) => {
      if (identities.has(candidate.identity)) return [candidate]
      const other = candidate.place === undefined ? undefined : places.get(candidate.place)
      return other === undefined ? [] : [{ ...other, looks: MOVED_LOOKS }]
    })
  }
  return confirmed
}

async function untilTheGuestRan({ clock, signal }: Pace): Promise<boolean> {
  const before = (await clock()).now
  const deadline = performance.now() + STANDSTILL_MS
  do {
    await sleep(50 + Math.random() * 150, undefined, signal === undefined ? {} : { signal }).catch((cause) => {
      throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'the inspection was aborted', { cause })
    })
    if ((await clock()).now !== before) return true
  } while (performance.now() < deadline)
  return false
}
