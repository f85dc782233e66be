import { writeFileSync } from 'node:fs'

/** Lines of an error at its start and at its end, where the console of a lost guest is, that the closing lines repeat. */
const LINES = { first: 6, last: 24 }

/** A vitest reporter that leaves the names of all tests by how they ended, with the reason of every skip and failure, in the file COUNTS_FILE names. */
export default class Counts {
  onTestRunEnd(modules, unhandledErrors, reason) {
    const counts = { reason, passed: [], failed: [], skipped: [] }
    for (const module of modules) {
      const file = module.relativeModuleId ?? module.moduleId
      const before = counts.failed.length
      for (const test of module.children.allTests()) {
        const { state, note, errors } = { note: undefined, ...test.result() }
        const name = `${file} > ${test.fullName}`
        // Vitest calls what a hook that threw kept from running skipped: it failed.
        const broken = state === 'skipped' ? hookErrors(test) : []
        if (state === 'passed') counts.passed.push(name)
        else if (broken.length > 0) counts.failed.push({ name, why: `a hook failed: ${told(broken)}` })
        else if (state === 'skipped') counts.skipped.push({ name, why: note ?? 'skipped in the test file' })
        else counts.failed.push({ name, why: state === 'failed' ? told(errors) : 'it never ended' })
      }
      // A file that fails to load, or a hook after all tests, fails without a failing test.
      if (!module.ok() && counts.failed.length === before)
        counts.failed.push({ name: file, why: told(allErrors(module)) })
    }
    for (const error of unhandledErrors) counts.failed.push({ name: 'unhandled', why: told([error]) })
    writeFileSync(process.env.COUNTS_FILE, JSON.stringify(counts))
  }
}

/** What the hooks around a test threw: vitest keeps it with the suite, or with the file. */
function hookErrors(test) {
  const errors = []
  for (let at = test.parent; at !== undefined; at = at.parent) errors.push(...(at.errors?.() ?? []))
  return errors
}

const allErrors = (module) => [
  ...module.errors(),
  ...[...module.children.allSuites()].flatMap((suite) => suite.errors()),
]

/** Errors in words, without what a long one says in its middle. */
function told(errors) {
  const lines = errors
    .flatMap((error) => [error.message ?? String(error), ...placeOf(error)])
    .join('\n')
    .split('\n')
  const { first, last } = LINES
  if (lines.length <= first + last) return lines.join('\n')
  return [...lines.slice(0, first), `... ${lines.length - first - last} lines ...`, ...lines.slice(-last)].join('\n')
}

const placeOf = ({ stacks: [at] = [] }) => (at === undefined ? [] : [`at ${at.file}:${at.line}:${at.column}`])
