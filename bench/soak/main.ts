/**
 * npm run soak: what takes longer than a test may, and whether anything grows by it. `npm run soak -- attach` runs one part.
 * Each part is a function that gives what it came to; ends with 1 if something has grown.
 */
import { bootXen } from '../../test/rig/xen/lib/host.js'
import { guestImage } from '../image.js'
import { attachCycles, type Soaked } from './attach.js'

type Progress = (message: string) => void

const PARTS: Readonly<Record<string, (progress: Progress) => Promise<Soaked[]>>> = {
  attach: async (progress) => [
    await attachCycles('attach.raw', `raw:${await guestImage(progress)}`, 10_000, /ram\.raw$/, progress),
  ],
  xen: attachXen,
}

/** The same on a domain: fewer, as emulation makes each take a second. */
async function attachXen(progress: Progress): Promise<Soaked[]> {
  await using xen = await bootXen({ progress })
  await xen.createGuest({ name: 'soak', kind: 'pvh', memory: '192M', progress })
  progress('500 cycles in dom0')
  const { stdout } = await xen.dom0.node(['soak.mjs', 'xen:soak', '500'], { timeoutMs: 3_600_000 })
  return [JSON.parse(stdout)]
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
  for (const { name, count, seconds, before, after, grown } of await soak(progress)) {
    const resident = ((after.resident - before.resident) / 2 ** 20).toFixed(1)
    const what = grown.length === 0 ? 'nothing has grown' : `GROWN: ${grown.join('; ')}`
    process.stdout.write(
      `${name}: ${count} cycles in ${seconds.toFixed(0)} s, resident ${resident} MiB, files ${after.files - before.files}, mapped ${after.mapped} bytes: ${what}\n`,
    )
    if (grown.length > 0) process.exitCode = 1
  }
}
