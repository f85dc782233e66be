import type { ChildProcess } from 'node:child_process'
import { chmodSync, chownSync, mkdirSync, renameSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { KeyPair, readManifest, signManifest } from '@cloudapp/sdk'
import { build } from 'esbuild'
import { copyPackage, privateFolder, projectRoot, removeFolder, start, stop } from '../../test/rig/lib/index.js'

/** Users of their own, so that the host's permissions part the parties; none of them needs an account. */
export const UIDS = { sd: 64_001, client: 64_002, customer: 64_003 } as const

export type Party = keyof typeof UIDS | 'root'

export interface Outcome {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/**
 * The package installed where every party can read it (a checkout may be in a folder only its owner may enter), and a
 * private folder for each.
 */
export class Parties implements AsyncDisposable {
  readonly folder = privateFolder(tmpdir(), 'cloudapp-demo-')
  readonly #children: ChildProcess[] = []

  static async install(): Promise<Parties> {
    const parties = new Parties()
    const { folder } = parties
    chmodSync(folder, 0o755)
    for (const name of ['app', 'run']) mkdirSync(path.join(folder, name), { mode: 0o755 })
    mkdirSync(path.join(folder, 'root'), { mode: 0o700 })
    for (const [name, uid] of Object.entries(UIDS)) {
      mkdirSync(path.join(folder, name), { mode: 0o700 })
      chownSync(path.join(folder, name), uid, uid)
    }
    // The service domain announces its socket in the folder of sockets; nobody else may.
    chmodSync(path.join(folder, 'run'), 0o1777)
    copyPackage(path.join(folder, 'app/node_modules'))
    for (const program of ['ids', 'client', 'demo/probe']) {
      await build({
        entryPoints: [
          path.join(projectRoot, 'examples', program.includes('/') ? `${program}.ts` : `${program}/main.ts`),
        ],
        outfile: path.join(folder, 'app', `${path.basename(program)}.mjs`),
        bundle: true,
        packages: 'external',
        // Not the project's own, whose paths lead to the sources: the parties use the package as it is installed.
        tsconfigRaw: '{}',
        format: 'esm',
        platform: 'node',
        target: 'node20',
        logLevel: 'silent',
      })
    }
    // The publisher signs what it ships; nobody takes on a service domain that is not signed.
    const manifest = await readManifest(path.join(projectRoot, 'examples/ids/cloudapp.json'))
    const signed = signManifest(manifest, KeyPair.generate())
    writeFileSync(path.join(folder, 'app/cloudapp.json'), JSON.stringify(signed), { mode: 0o644 })
    return parties
  }

  /** A file in a party's private folder. */
  file(party: Party, name: string): string {
    return path.join(this.folder, party, name)
  }

  /** Puts a file into a party's private folder; it appears there whole. */
  handOver(party: keyof typeof UIDS, name: string, text: string): void {
    const file = this.file(party, name)
    mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 })
    chownSync(path.dirname(file), UIDS[party], UIDS[party])
    writeFileSync(`${file}.part`, `${text}\n`, { mode: 0o600 })
    chownSync(`${file}.part`, UIDS[party], UIDS[party])
    renameSync(`${file}.part`, file)
  }

  socket(name: string): string {
    return path.join(this.folder, 'run', `${name}.sock`)
  }

  /** Starts one of the party's programs; it can not outlive this process. */
  start(party: Party, program: 'cloudapp' | 'ids' | 'client' | 'probe', args: readonly string[]): ChildProcess {
    const app = path.join(this.folder, 'app')
    const script = program === 'cloudapp' ? 'node_modules/@cloudapp/sdk/dist/cli/main.js' : `${program}.mjs`
    const identity = party === 'root' ? {} : { uid: UIDS[party], gid: UIDS[party] }
    const child = start(process.execPath, [path.join(app, script), ...args], {
      cwd: path.join(this.folder, party),
      env: {
        PATH: process.env.PATH,
        HOME: path.join(this.folder, party),
        COLUMNS: String(process.stdout.columns ?? 120),
      },
      stdio: ['pipe', 'pipe', 'pipe'],
      ...identity,
    })
    this.#children.push(child)
    return child
  }

  /** Runs one of the party's programs to its end. */
  run(party: Party, program: 'cloudapp' | 'client' | 'probe', args: readonly string[]): Promise<Outcome> {
    return outcome(this.start(party, program, args))
  }

  /** Runs one that must work, and gives its one JSON document. */
  async json<T>(party: Party, args: readonly string[]): Promise<T> {
    const { code, stdout, stderr } = await this.run(party, 'cloudapp', [...args, '--json'])
    if (code !== 0) throw new Error(`cloudapp ${args.join(' ')} ended with ${code}: ${stderr}`)
    return JSON.parse(stdout) as T
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children.reverse()) await stop(child)
    removeFolder(this.folder)
  }
}

export async function outcome(child: ChildProcess): Promise<Outcome> {
  const said = { stdout: '', stderr: '' }
  child.stdout?.on('data', (chunk) => {
    said.stdout += chunk
  })
  child.stderr?.on('data', (chunk) => {
    said.stderr += chunk
  })
  child.stdin?.end()
  const code = await new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (status, signal) => resolve(status ?? (signal === null ? 1 : 128)))
  })
  return { code, ...said }
}

/** The lines of a program that goes on. */
export class Output {
  readonly #lines: AsyncIterator<string>
  readonly #what: string
  #complaint = ''

  constructor(child: ChildProcess, what: string) {
    if (child.stdout === null) throw new Error(`${what} has no output`)
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    this.#what = what
    child.stderr?.on('data', (chunk) => {
      this.#complaint = (this.#complaint + chunk).slice(-16_384)
    })
  }

  /** The next line that starts with `prefix`. */
  async line(prefix = ''): Promise<string> {
    for (;;) {
      const { value, done } = await this.#lines.next()
      if (done) throw new Error(`${this.#what} ended: ${this.#complaint}`)
      if (value.startsWith(prefix)) return value
    }
  }
}
