import { integrity } from '../../vmi/linux/integrity/integrity.js'
import type { Command } from '../command.js'
import { sourceOption, withLinux } from '../vm.js'

export const command: Command = {
  summary: 'Look for what hides in a VM, and for code that diverts its kernel',
  help: 'Exits 0 also when something is found: the result says so. A check that could not be done is listed with the reason.',
  options: sourceOption,
  json: true,
  run: (invocation) =>
    withLinux(invocation, async (linux, vm) => {
      const { out, signal } = invocation
      const report = await integrity(linux, { signal, ...(vm.vcpus ? { vcpus: vm.vcpus } : {}) })
      if (out.isJson) {
        out.json({ hits: report.hits, checks: report.checks })
        return 0
      }
      if (report.hits.length === 0) out.line('nothing found')
      else {
        out.table(
          [{ title: 'SEVERITY' }, { title: 'CONFIDENCE' }, { title: 'KIND' }, { title: 'WHAT' }],
          report.hits.map((hit) => [hit.severity, hit.confidence, hit.kind, hit.title]),
        )
      }
      for (const check of report.checks) {
        if (!check.done) out.note(`not checked: ${check.name}: ${check.reason ?? 'no reason given'}`)
      }
      return 0
    }),
}
