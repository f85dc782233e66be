import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CloudAppError } from '../errors.js'
import { type Run, run } from './run.js'

/** Whether Xen enforces a FLASK policy: `absent` on a Xen without XSM. */
export type FlaskMode = 'enforcing' | 'permissive' | 'absent'

/** Xen's policy, as far as a broker changes it. */
export interface FlaskHost {
  mode(): Promise<FlaskMode>
  /** Puts a compiled policy in place of the one that is loaded; booleans of the same name keep their state. */
  load(policy: Uint8Array): Promise<void>
  booleans(): Promise<ReadonlyMap<string, boolean>>
  /** Sets one boolean; holds for every hypercall that begins after it. */
  set(name: string, on: boolean): Promise<void>
}

const NAME = /^[a-z][a-z0-9_]{0,255}$/

/** By the tools of Xen's own package: xl(1), flask-set-bool(8), flask-get-bool(8). */
export class XlFlask implements FlaskHost {
  readonly #run: Run

  constructor(runner: Run = run) {
    this.#run = runner
  }

  async mode(): Promise<FlaskMode> {
    let said: string
    try {
      said = await this.#run('xl', ['getenforce'])
    } catch (error) {
      // xl's exit status is the mode: it fails when Xen enforces. Without XSM it says "Flask XSM Disabled".
      if (!CloudAppError.is(error, 'ERR_CLOUDAPP_SOURCE')) throw error
      said = error.message
    }
    if (/\bEnforcing\b/.test(said)) return 'enforcing'
    if (/\bPermissive\b/.test(said)) return 'permissive'
    if (/\bDisabled\b/.test(said)) return 'absent'
    throw new CloudAppError('ERR_CLOUDAPP_SOURCE', `xl getenforce said '${said.trim().slice(0, 200)}'`)
  }

  async load(policy: Uint8Array): Promise<void> {
    const folder = await mkdtemp(join(tmpdir(), 'cloudapp-policy-'))
    try {
      const file = join(folder, 'xenpolicy')
      await writeFile(file, policy, { mode: 0o600 })
      await this.#run('xl', ['loadpolicy', file])
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  }

  async booleans(): Promise<ReadonlyMap<string, boolean>> {
    const said = await this.#run('flask-get-bool', ['-a'])
    const all = new Map<string, boolean>()
    // "name: 1", and "name: 1 0 pending" while a change is not committed.
    for (const [, name = '', value] of said.matchAll(/^(\S+): (\d)/gm)) all.set(name, value === '1')
    return all
  }

  async set(name: string, on: boolean): Promise<void> {
    if (!NAME.test(name))
      throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `'${name.slice(0, 64)}' is no boolean`)
    await this.#run('flask-set-bool', [name, on ? '1' : '0'])
  }
}
