import { execFileSync, spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

export const root = path.resolve(import.meta.dirname, '../..')

interface Manifest {
  readonly version: string
  readonly exports: Readonly<Record<string, string | { readonly types: string; readonly default: string }>>
}

export const manifest: Manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))

/** Every subpath as a user writes it; package.json is no module. */
export const subpaths = Object.keys(manifest.exports)
  .filter((subpath) => subpath !== './package.json')
  .map((subpath) => `@cloudapp/sdk${subpath.slice(1)}`)

/** Both tarballs, made of what the set-up of these tests built. */
export function pack(): { folder: string; tarballs: string[] } {
  const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-pack-'))
  execFileSync(process.execPath, [path.join(root, 'scripts/pack.mjs'), path.join(folder, 'tarballs'), '--built'], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const made = readdirSync(path.join(folder, 'tarballs')).map((name) => path.join(folder, 'tarballs', name))
  return { folder, tarballs: made.sort() }
}

/** An empty project whose PATH holds node and npm and nothing else: no compiler, no make, no python. */
export class Consumer implements Disposable {
  readonly folder: string
  readonly #bin: string

  constructor() {
    this.folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-consumer-'))
    this.#bin = path.join(this.folder, 'path')
    mkdirSync(this.#bin)
    symlinkSync(process.execPath, path.join(this.#bin, 'node'))
    symlinkSync(npmOfPath(), path.join(this.#bin, 'npm'))
    writeFileSync(path.join(this.folder, 'package.json'), JSON.stringify({ private: true, type: 'module' }))
  }

  run(program: string, args: readonly string[], env: Record<string, string> = {}) {
    const file = path.isAbsolute(program) ? program : path.join(this.#bin, program)
    const { NODE_PATH: _, ...inherited } = process.env
    const outcome = spawnSync(file, args, {
      cwd: this.folder,
      encoding: 'utf8',
      env: { ...withoutNpm(inherited), PATH: this.#bin, ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: 240_000,
    })
    if (outcome.error) throw outcome.error
    return { code: outcome.status, stdout: outcome.stdout, stderr: outcome.stderr }
  }

  /** Runs an ES module of this text in the project. */
  script(text: string) {
    writeFileSync(path.join(this.folder, 'script.mjs'), text)
    return this.run('node', ['script.mjs'])
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true, force: true })
  }
}

function npmOfPath(): string {
  const found = (process.env.PATH ?? '')
    .split(path.delimiter)
    .map((folder) => path.join(folder, 'npm'))
    .find((file) => existsSync(file))
  if (found === undefined) throw new Error('npm is not on the PATH')
  return realpathSync(found)
}

/** What an outer `npm test` or `npm run` sets must not reach the inner npm: it would take our project for its own. */
function withoutNpm(env: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const ours = /^(npm_package_|npm_lifecycle_|npm_command$|npm_execpath$|INIT_CWD$|npm_config_(local_prefix|prefix)$)/
  return Object.fromEntries(Object.entries(env).filter(([name]) => !ours.test(name)))
}
