import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { benchBroker } from './broker.js'
import { benchFindings } from './findings.js'
import { guestImage } from './image.js'
import type { Measurement } from './measure.js'
import { benchSd } from './sd.js'
import { benchVmi } from './vmi.js'

const { values } = parseArgs({ options: { json: { type: 'string' } } })
const progress = (message: string) => process.stderr.write(`${message}\n`)

const ram = await guestImage(progress)
const results: Measurement[] = [
  ...(await benchVmi(ram, progress)),
  ...(await benchBroker(ram, progress)),
  ...(await benchSd(ram, progress)),
  ...(await benchFindings(progress)),
]
const width = Math.max(...results.map(({ name }) => name.length))
for (const { name, value, unit, note } of results) {
  process.stdout.write(
    `${name.padEnd(width)}  ${value.toFixed(value < 10 ? 2 : 1).padStart(8)} ${unit.padEnd(6)} ${note}\n`,
  )
}
if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(results, null, 2)}\n`)
