// The steps of `npm test`, in the order they run: cheap ones first. Neighbours of the same `beside` run side by side: each keeps
// one processor busy at most. Each gives { passed, failed and skipped: [{ name, why }] }.
import { existsSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { run } from './run.mjs'

const root = new URL('../..', import.meta.url).pathname
const bin = (name) => join(root, 'node_modules', '.bin', name)
const native = join(root, 'native', 'libvmi-shim')

const none = { passed: 0, failed: [], skipped: [] }
const node = (...args) => [process.execPath, ...args]

/** A program that passes or fails as one test. */
const one = (name, command, options) => async () => {
  const result = await run(command, { cwd: root, ...options })
  return result.ok ? { ...none, passed: 1 } : { ...none, failed: [{ name, why: result.how }] }
}

/** One run of a vitest project. What a crash leaves uncounted is one failure, never nothing. */
async function vitestOnce(project, { filters = [], env = {}, minutes = 10, label = project }) {
  const folder = join(root, 'build', 'test-counts')
  mkdirSync(folder, { recursive: true })
  const file = join(folder, `${label}.json`)
  rmSync(file, { force: true })
  const command = [
    ...node(join(root, 'node_modules', 'vitest', 'vitest.mjs'), 'run', '--project', project),
    '--reporter=default',
    `--reporter=${join(root, 'scripts', 'test', 'vitest-counts.mjs')}`,
    ...filters,
  ]
  const result = await run(command, { cwd: root, env: { ...env, COUNTS_FILE: file }, minutes })
  const gone = (why) => ({ passed: [], failed: [{ name: label, why: `${why} (${result.how})` }], skipped: [] })
  if (!existsSync(file)) return gone('the test runner did not report')
  const { reason, ...counts } = JSON.parse(readFileSync(file, 'utf8'))
  if (!result.ok && counts.failed.length === 0) {
    counts.failed.push({ name: label, why: `the test runner failed (${result.how})` })
  }
  if (reason === 'interrupted') counts.failed.push({ name: label, why: 'interrupted' })
  if (counts.passed.length + counts.failed.length + counts.skipped.length === 0) return gone('no test was found')
  return counts
}

/** A vitest project. */
const vitest =
  (project, options = {}) =>
  async () => {
    const counts = await vitestOnce(project, options)
    return { ...counts, passed: counts.passed.length }
  }

/** How often a file may be run again because emulation lost a guest of it: one of some 25, when Node runs in it. */
const AGAIN = 3
/** Minutes all of it may take, and one more run. */
const XEN_MINUTES = { all: 65, again: 20 }

/**
 * The Xen suite. What failed in a file of which a guest ended in a triple fault, or dom0 fell silent, as emulation now and then
 * brings it about (test/rig/xen/lib/lost.ts), says little: that file is run again, on a host of its own, and then counts as it ends. One
 * host at a time: two on two processors are four times slower, as a processor of one spins while the other's is not on.
 */
async function xenSuite() {
  const lost = join(root, 'build', 'test-counts', 'xen-lost')
  const env = { RIG_LOST: lost }
  rmSync(lost, { force: true })
  const end = Date.now() + XEN_MINUTES.all * 60_000
  let counts = await vitestOnce('xen', { minutes: 45, env })
  for (let again = 1; again <= AGAIN; again++) {
    const told = existsSync(lost) ? readFileSync(lost, 'utf8').split('\n') : []
    const files = [...new Set(told)].filter((file) => file !== '' && counts.failed.some(({ name }) => isOf(name, file)))
    if (files.length === 0) break
    process.stdout.write(`once more, because emulation lost a guest or the host: ${files.join(', ')}\n`)
    rmSync(lost, { force: true })
    const minutes = Math.max(1, Math.min(XEN_MINUTES.again, (end - Date.now()) / 60_000))
    const next = await vitestOnce('xen', { minutes, label: `xen-again-${again}`, filters: files, env })
    const others = (tests) => tests.filter((test) => !files.some((file) => isOf(test.name ?? test, file)))
    counts = {
      passed: [...others(counts.passed), ...next.passed],
      failed: [...others(counts.failed), ...next.failed],
      skipped: [...others(counts.skipped), ...next.skipped],
    }
  }
  return { ...counts, passed: counts.passed.length }
}

const isOf = (name, file) => name === file || name.startsWith(`${file} > `)

/** The C tests print a line `ok NAME` per group; the first failed check, or a sanitizer's report, ends the program. */
async function nativeTests() {
  const result = await run(['make', '-s', '-C', native, 'test'], { minutes: 15 })
  const passed = [...result.output.matchAll(/^ok \w+$/gm)].length
  const why = /^.*: failed: .*$|^.*(?:Sanitizer|runtime error): .*$/m.exec(result.output)?.[0] ?? result.how
  if (!result.ok) return { ...none, passed, failed: [{ name: 'native: make test', why }] }
  return passed > 0
    ? { ...none, passed }
    : { ...none, failed: [{ name: 'native: make test', why: 'it gave no count' }] }
}

/**
 * Runs only while a processor has nothing else to do. For what waits for nobody's answer: beside the Xen host, which leaves a
 * third of two processors, and whose guests are lost to who takes more.
 */
const spare = (...command) => ['chrt', '--idle', '0', ...command]

/** libFuzzer says a line for every input it keeps: shown only if it finds something. */
async function fuzz() {
  const command = spare('make', '-s', '-C', native, 'fuzz-run', `RUNS=${process.env.CLOUDAPP_FUZZ_RUNS ?? 100000}`)
  const result = await run(command, { minutes: 40, quiet: true })
  if (result.ok) return { ...none, passed: 1 }
  process.stdout.write(result.output)
  return { ...none, failed: [{ name: 'fuzz: make fuzz-run', why: result.how }] }
}

/** A million bent tokens; the program says the number it really ran. */
async function tokenFuzz() {
  const inputs = process.env.CLOUDAPP_FUZZ_INPUTS ?? '1000000'
  const command = [...node('--import', join(root, 'scripts', 'ts.mjs')), join(root, 'test/capabilities/fuzz-main.ts')]
  const result = await run(spare(...command, inputs), { cwd: root, minutes: 40 })
  return result.ok ? { ...none, passed: 1 } : { ...none, failed: [{ name: 'token-fuzz', why: result.how }] }
}

/** What keeps VMs from booting here, as the set-up found out; undefined if nothing does. */
function rigProblem() {
  const file = join(root, 'build', 'rig-unavailable')
  return existsSync(file) ? readFileSync(file, 'utf8').trim() : undefined
}

/**
 * A step that boots VMs. Where none can be booted, what it would have run is counted as skipped, with the reason.
 * `problem`: what keeps this step's VMs from booting, undefined if nothing does.
 */
const needsVms =
  (project, step, problem = () => undefined) =>
  async () => {
    const why = rigProblem() ?? (await problem())
    if (why === undefined) return step()
    return { ...none, skipped: (await testsOf(project)).map((name) => ({ name, why })) }
  }

async function testsOf(project) {
  const command = [...node(join(root, 'node_modules', 'vitest', 'vitest.mjs')), 'list', '--project', project, '--json']
  const { ok, output } = await run(command, { cwd: root, quiet: true })
  const start = output.indexOf('[\n')
  return ok && start >= 0 ? JSON.parse(output.slice(start)).map((test) => test.name) : [`all tests of ${project}`]
}

/** Makes what the Xen host is booted from, once: Debian packages that this machine may not be able to get. */
async function xenProblem() {
  const program = join(root, 'test', 'rig', 'xen', 'prepare.ts')
  const result = await run(node('--import', join(root, 'scripts', 'ts.mjs'), program), { cwd: root, minutes: 20 })
  if (result.ok) return undefined
  const said = result.output.split('\n').filter((line) => line.startsWith('no Xen host can be made here'))
  return said.at(-1) ?? `no Xen host can be made here (${result.how})`
}

export const steps = [
  { name: 'lint', what: 'biome', beside: 'static', run: one('lint', [bin('biome'), 'check', '.']) },
  { name: 'types', what: 'tsc', beside: 'static', run: one('types', [bin('tsc'), '--noEmit']) },
  {
    name: 'arrows',
    what: 'import directions',
    beside: 'static',
    run: one('arrows', node(join(root, 'scripts', 'check-arrows.mjs'))),
  },
  { name: 'native', what: 'C tests under ASan and UBSan', beside: 'static', run: nativeTests },
  { name: 'unit', what: 'vitest; the native suites through koffi and ffi-napi', run: vitest('unit') },
  {
    name: 'long',
    what: 'attacks, crashes, scale and whole processes, without VMs',
    run: vitest('long', { minutes: 15 }),
  },
  { name: 'timed', what: 'what a flood leaves to others, alone on the machine', run: vitest('timed') },
  {
    name: 'crash',
    what: 'a broker killed 200 times under load',
    beside: 'rig',
    run: vitest('long', {
      filters: ['test/broker/crash.test.ts'],
      env: { CLOUDAPP_KILLS: process.env.CLOUDAPP_KILLS ?? '200' },
      label: 'crash',
      minutes: 15,
    }),
  },
  {
    name: 'rig',
    what: 'real VMs, and the demo with every example in it',
    vms: true,
    beside: 'rig',
    run: needsVms('rig', vitest('rig', { minutes: 25 })),
  },
  {
    name: 'package',
    what: 'the built package, its command and its documents',
    run: vitest('package', { minutes: 15 }),
  },
  { name: 'fuzz', what: 'page walker and structure walks, a bounded run', beside: 'xen', run: fuzz },
  { name: 'token-fuzz', what: 'decode and verify, a million bent tokens', beside: 'xen', run: tokenFuzz },
  {
    name: 'xen',
    what: 'a real Xen host, its guests and the xen: source',
    vms: true,
    beside: 'xen',
    run: needsVms('xen', xenSuite, xenProblem),
  },
]
