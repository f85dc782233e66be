// The steps of `npm test`, in the order they run: cheap ones first. Each gives { passed, failed: [name], skipped: [{name, why}] }.
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
  return result.ok ? { ...none, passed: 1 } : { ...none, failed: [`${name}: ${result.how}`] }
}

/** A vitest project. What a crash leaves uncounted is one failure, never nothing. */
const vitest =
  (project, { filters = [], env = {}, minutes = 10, label = project } = {}) =>
  async () => {
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
    if (!existsSync(file)) return { ...none, failed: [`${label}: the test runner did not report (${result.how})`] }
    const counts = JSON.parse(readFileSync(file, 'utf8'))
    const failed = [...counts.failed]
    if (!result.ok && failed.length === 0) failed.push(`${label}: the test runner failed (${result.how})`)
    if (counts.reason === 'interrupted') failed.push(`${label}: interrupted`)
    const { passed, skipped } = counts
    if (passed + failed.length + skipped.length === 0) failed.push(`${label}: no test was found`)
    return { passed, failed, skipped }
  }

/** The C tests print `N passed, N failed`; sanitizer reports end the program. */
async function nativeTests() {
  const result = await run(['make', '-C', native, 'test'], { minutes: 15 })
  const counts = [...result.output.matchAll(/^(\d+) passed, (\d+) failed/gm)].at(-1)
  const passed = Number(counts?.[1] ?? 0)
  const failed = [...result.output.matchAll(/^(?:not ok|FAIL)\b.*$/gm)].map(([line]) => `native: ${line}`)
  if (!result.ok && failed.length === 0) failed.push(`native: make test: ${result.how}`)
  if (!counts && result.ok) failed.push('native: make test gave no count')
  return { ...none, passed, failed }
}

async function fuzz() {
  const result = await run(['make', '-C', native, 'fuzz-run', `RUNS=${process.env.CLOUDAPP_FUZZ_RUNS ?? 200000}`], {
    minutes: 10,
  })
  return result.ok ? { ...none, passed: 1 } : { ...none, failed: [`fuzz: make fuzz-run: ${result.how}`] }
}

const bothBackends = ['test/native', 'test/conformance']

export const steps = [
  { name: 'lint', what: 'biome', run: one('lint', [bin('biome'), 'check', '.']) },
  { name: 'types', what: 'tsc', run: one('types', [bin('tsc'), '--noEmit']) },
  { name: 'arrows', what: 'import directions', run: one('arrows', node(join(root, 'scripts', 'check-arrows.mjs'))) },
  { name: 'native', what: 'C tests under ASan and UBSan', run: nativeTests },
  { name: 'fuzz', what: 'page walker and structure walks, a bounded run', run: fuzz },
  { name: 'unit', what: 'vitest, koffi', run: vitest('unit', { env: { CLOUDAPP_FFI: 'koffi' } }) },
  {
    name: 'ffi-napi',
    what: 'native conformance through the second FFI backend',
    run: vitest('unit', { label: 'ffi-napi', filters: bothBackends, env: { CLOUDAPP_FFI: 'ffi-napi' } }),
  },
  {
    name: 'package',
    what: 'the built package, its command and its documents',
    run: vitest('package', { minutes: 15 }),
  },
  { name: 'rig', what: 'real VMs', vms: true, run: vitest('rig', { minutes: 25 }) },
]
