/**
 * npm run soak: what takes longer than a test may, and whether anything grows by it. `npm run soak -- attach` runs one part.
 * Each part is a function that gives what it came to; ends with 1 if something has grown.
 */
import { bootXen } from '../../test/rig/xen/lib/host.js'
import { lostSoFar, type TripleFault } from '../../test/rig/xen/lib/lost.js'
import { busyGuest, storm } from '../../test/rig/xen/lib/tracers.js'
import { guestImage } from '../image.js'
import { attachCycles } from './attach.js'
import { dumpXen } from './dump.js'
import { syntheticEvents } from './events.js'
import type { Soaked } from './usage.js'

const KILLS = 500
/** What the emulation alone brings about: here, where tracers are killed, no other triple fault is taken for its. */
const xensOwn = (fault: TripleFault): boolean => fault.xensOwn
/** At most so many guests for them. */
const GUESTS = 5

type Progress = (message: string) => void

const PARTS: Readonly<Record<string, (progress: Progress) => Promise<Soaked[]>>> = {
  attach: async (progress) => [
    await attachCycles('attach.raw', `raw:${await guestImage(progress)}`, 10_000, /ram\.raw$/, progress),
  ],
  events: async () => [await syntheticEvents(1_000_000)],
  xen: attachXen,
  kills: killTracers,
  dump: dumpXen,
}

/** The same on a domain: fewer, as emulation makes each take a second. */
async function attachXen(progress: Progress): Promise<Soaked[]> {
  await using xen = await bootXen({ progress })
  await xen.createGuest({ name: 'soak', kind: 'pvh', memory: '192M', progress })
  progress('500 cycles in dom0')
  const { stdout } = await xen.dom0.node(['soak.mjs', 'xen:soak', '500'], { timeoutMs: 3_600_000 })
  return [JSON.parse(stdout)]
}

/**
 * Kills tracers of a busy guest, at any moment, in any combination of their processes. A guest that the emulation lost
 * (test/rig/xen/lib/lost.ts) is told, and another one takes its place.
 */
async function killTracers(progress: Progress): Promise<Soaked[]> {
  await using xen = await bootXen({ progress })
  const began = performance.now()
  const failed: string[] = []
  let done = 0
  for (let guests = 1; done < KILLS && failed.length === 0; guests++) {
    const lost = lostSoFar(xensOwn)
    const guest = await busyGuest(xen, `soak-${guests}`)
    progress(`${KILLS - done} kills; about ten minutes`)
    const said = await storm(xen, guest, KILLS - done, guests, 7_200_000)
    progress(said.trim())
    const counted = Number([...said.matchAll(/^kill (\d+)$/gm)].at(-1)?.[1] ?? 0)
    if (/, failed 0;/.test(said)) done = KILLS
    else if (lostSoFar(xensOwn) > lost && guests < GUESTS) {
      done += counted
      progress(`the emulation lost the guest after ${counted} kills or a few more`)
    } else failed.push(`${said}\n${await xen.logs()}`)
  }
  const seconds = (performance.now() - began) / 1000
  const none = { resident: 0, files: 0, mapped: 0 }
  return [{ name: 'kills.xen', unit: 'kills', count: done, seconds, before: none, after: none, grown: failed }]
}

const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !Object.hasOwn(PARTS, name))
if (unknown.length > 0) {
  process.stderr.write(`no part ${unknown.join(', ')}; there are ${Object.keys(PARTS).join(', ')}\n`)
  process.exit(2)
}
const progress: Progress = (message) => process.stderr.write(`${message}\n`)
for (const [part, soak] of Object.entries(PARTS)) {
  if (wanted.length > 0 && !wanted.includes(part)) continue
  for (const { name, unit, count, seconds, before, after, grown } of await soak(progress)) {
    const resident = ((after.resident - before.resident) / 2 ** 20).toFixed(1)
    const what = grown.length === 0 ? 'nothing has grown' : `BAD: ${grown.join('; ')}`
    process.stdout.write(
      `${name}: ${count} ${unit} in ${seconds.toFixed(0)} s, resident ${resident} MiB, files ${after.files - before.files}, mapped ${after.mapped} bytes: ${what}\n`,
    )
    if (grown.length > 0) process.exitCode = 1
  }
}
