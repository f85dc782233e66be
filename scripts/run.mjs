// node scripts/run.mjs FILE.ts [arguments]: makes this machine ready, then runs a program of the project that needs VMs
// (`npm run demo`, `npm run bench`). Exits 2, after saying why, where it can not run.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

const root = resolve(import.meta.dirname, '..')
const [file, ...args] = process.argv.slice(2)

const setup = spawnSync(process.execPath, [join(root, 'scripts/setup.mjs')], {
  stdio: ['ignore', 'inherit', 'inherit'],
})
if (setup.status !== 0) process.exit(setup.status ?? 1)
const unavailable = join(root, 'build/rig-unavailable')
if (existsSync(unavailable)) {
  process.stderr.write(`${readFileSync(unavailable, 'utf8').trim()}\n`)
  process.exit(2)
}

const program = spawn(process.execPath, ['--import', join(root, 'scripts/ts.mjs'), join(root, file), ...args], {
  stdio: 'inherit',
})
// A terminal sends its interrupt to both; the program ends what it started and says how it ended.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => program.kill(signal))
program.once('exit', (code, signal) => process.exit(code ?? (signal === null ? 1 : 128)))
