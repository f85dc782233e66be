import { writeFileSync } from 'node:fs'

/** A vitest reporter that leaves the names of all tests by how they ended, with the reason of every skip, in the file COUNTS_FILE names. */
export default class Counts {
  onTestRunEnd(modules, unhandledErrors, reason) {
    const counts = { reason, passed: [], failed: [], skipped: [] }
    for (const module of modules) {
      const file = module.relativeModuleId ?? module.moduleId
      const before = counts.failed.length
      for (const test of module.children.allTests()) {
        const { state, note } = { note: undefined, ...test.result() }
        const name = `${file} > ${test.fullName}`
        if (state === 'passed') counts.passed.push(name)
        else if (state === 'skipped') counts.skipped.push({ name, why: note ?? 'skipped in the test file' })
        else counts.failed.push(state === 'failed' ? name : `${name} (never ended)`)
      }
      // A file that fails to load, or a hook that throws, fails without a failing test.
      if (!module.ok() && counts.failed.length === before) counts.failed.push(file)
    }
    for (const error of unhandledErrors) counts.failed.push(`unhandled: ${String(error.message).split('\n')[0]}`)
    writeFileSync(process.env.COUNTS_FILE, JSON.stringify(counts))
  }
}
