import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { benchBroker } from './broker.js'
import { benchEvents } from './events.js'
import { benchFindings } from './findings.js'
import { guestImage } from './image.js'
import { benchLibvmi } from './libvmi.js'
import type { Measurement } from './measure.js'
import { benchSd } from './sd.js'
import { benchVchan } from './vchan.js'
import { benchVmi } from './vmi.js'
import { benchXen } from './xen.js'

type Progress = (message: string) => void

// `npm run bench -- xen` measures only that part; without a name, all of them.
const PARTS: Readonly<Record<string, (progress: Progress) => Promise<Measurement[]>>> = {
  vmi: async (progress) => benchVmi(await guestImage(progress), progress),
  broker: async (progress) => benchBroker(await guestImage(progress), progress),
  sd: async (progress) => benchSd(await guestImage(progress), progress),
  findings: benchFindings,
  events: benchEvents,
  xen: benchXen,
  libvmi: benchLibvmi,
  vchan: benchVchan,
}

const { values, positionals } = parseArgs({ options: { json: { type: 'string' } }, allowPositionals: true })
const unknown = positionals.filter((name) => !Object.hasOwn(PARTS, name))
if (unknown.length > 0) {
  process.stderr.write(`no part ${unknown.join(', ')}; there are ${Object.keys(PARTS).join(', ')}\n`)
  process.exit(2)
}
const progress: Progress = (message) => process.stderr.write(`${message}\n`)
const results: Measurement[] = []
for (const [name, measure] of Object.entries(PARTS)) {
  if (positionals.length === 0 || positionals.includes(name)) results.push(...(await measure(progress)))
}
const width = Math.max(...results.map(({ name }) => name.length))
const told = (value: number): string => (value < 0.1 ? value.toPrecision(2) : value.toFixed(value < 10 ? 2 : 1))
for (const { name, value, unit, note } of results) {
  process.stdout.write(`${name.padEnd(width)}  ${told(value).padStart(8)} ${unit.padEnd(6)} ${note}\n`)
}
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(results, null, 2)}\n`)
