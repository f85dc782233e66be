// npm test: sets this machine up, runs every test there is, and ends on one line `N passed, N failed, N skipped`.
// `npm test -- unit types` runs only these steps. Node's own modules only: it runs before npm install.
import { endAll, run } from './test/run.mjs'
import { steps } from './test/steps.mjs'

const started = Date.now()
const root = new URL('..', import.meta.url).pathname
const requireRig = process.env.CLOUDAPP_REQUIRE_RIG === '1'
const totals = { passed: 0, failed: [], skipped: [] }

const elapsed = (since) => `${((Date.now() - since) / 1000).toFixed(1)} s`
const say = (text) => process.stdout.write(`${text}\n`)

function finish() {
  if (totals.skipped.length > 0) {
    for (const [why, tests] of byReason(totals.skipped)) {
      say(`skipped ${tests.length}: ${why}`)
      for (const test of tests) say(`    ${test.name}`)
    }
  }
  for (const { name, why } of totals.failed) say(`failed: ${name}: ${why.replaceAll('\n', '\n    ')}`)
  process.exitCode = totals.failed.length > 0 ? 1 : 0
  say(`${totals.passed} passed, ${totals.failed.length} failed, ${totals.skipped.length} skipped`)
}

function byReason(tests) {
  const groups = new Map()
  for (const test of tests) groups.set(test.why, [...(groups.get(test.why) ?? []), test])
  return groups
}

for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.once(signal, () => {
    endAll()
    totals.failed.push({ name: 'the test run', why: `interrupted by ${signal}` })
    finish()
    process.exit(1)
  })
}

/** The steps in their order; neighbours of the same `beside` run side by side. */
function groups(list) {
  const all = []
  for (const step of list) {
    const last = all.at(-1)
    if (step.beside !== undefined && last?.at(-1).beside === step.beside) last.push(step)
    else all.push([step])
  }
  return all
}

async function runStep(step) {
  const label = `[${chosen.indexOf(step) + 1}/${chosen.length}] ${step.name}`
  const began = Date.now()
  say(`\n${label}: ${step.what}`)
  const counts = await step.run().catch((error) => ({
    passed: 0,
    failed: [{ name: step.name, why: `the step itself broke: ${error.stack ?? error}` }],
    skipped: [],
  }))
  if (step.vms && requireRig && counts.skipped.length > 0) {
    counts.failed.push(
      ...counts.skipped.map(({ name, why }) => ({ name, why: `skipped (${why}), but CLOUDAPP_REQUIRE_RIG=1` })),
    )
    counts.skipped = []
  }
  totals.passed += counts.passed
  totals.failed.push(...counts.failed)
  totals.skipped.push(...counts.skipped)
  const { passed, failed, skipped } = counts
  say(`${label}: ${passed} passed, ${failed.length} failed, ${skipped.length} skipped in ${elapsed(began)}`)
}

const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !steps.some((step) => step.name === name))
if (unknown.length > 0) {
  process.stderr.write(`no step ${unknown.join(', ')}; there are ${steps.map((step) => step.name).join(', ')}\n`)
  process.exit(2)
}
const chosen = wanted.length > 0 ? steps.filter((step) => wanted.includes(step.name)) : steps

say(`[0/${chosen.length}] set-up`)
const setup = await run([process.execPath, `${root}scripts/setup.mjs`], { cwd: root, minutes: 30 })
if (!setup.ok) {
  totals.failed.push({ name: 'set-up', why: `${setup.how}; nothing was tested` })
  finish()
  // The set-up says 2 when the machine lacks something only a person can give.
  process.exitCode = setup.how === 'exit code 2' ? 2 : 1
} else {
  say(`[0/${chosen.length}] set-up done in ${elapsed(started)}`)
  for (const group of groups(chosen)) await Promise.all(group.map(runStep))
  say(`\nall in ${elapsed(started)}`)
  if (wanted.length > 0)
    say(
      `not run: ${steps
        .filter((step) => !chosen.includes(step))
        .map((step) => step.name)
        .join(', ')}`,
    )
  finish()
}
