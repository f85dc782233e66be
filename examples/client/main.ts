/** A client VM's side: asks a service domain for its findings and prints them as a table, or with --json as OCSF objects. */
import { parseArgs } from 'node:util'
import { type ClientFinding, findingsTable, SdClient } from '@cloudapp/sdk/client'

const { values } = parseArgs({
  options: {
    endpoint: { type: 'string', default: '/run/cloudapp/sd/ids.sock' },
    json: { type: 'boolean', default: false },
    /** Asks for a scan first, and waits for it; so many times. */
    scan: { type: 'string', default: '0' },
    vm: { type: 'string' },
  },
})

await using ids = await SdClient.connect(values.endpoint)
const vm = values.vm === undefined ? {} : { vm: values.vm }
for (let i = 0; i < Number(values.scan); i++) await (await ids.run(vm)).done()
const findings: ClientFinding[] = []
for await (const found of ids.findings.list(vm)) findings.push(found)
if (values.json)
  process.stdout.write(
    `${JSON.stringify(
      findings.map((found) => found.finding),
      null,
      2,
    )}\n`,
  )
else process.stdout.write(`${findingsTable(findings, { width: process.stdout.columns ?? 120 })}\n`)
