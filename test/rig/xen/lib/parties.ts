import type { GuestOutput, GuestRunOptions } from '../../lib/guest.js'
import type { XenHost } from './host.js'
import { APP } from './payload.js'

/** Users of their own, so that dom0's permissions part the parties; none of them needs an account. */
export const UIDS = { root: 0, sd: 64_001, client: 64_002, customer: 64_003 } as const

export type Party = keyof typeof UIDS

const PROGRAMS = {
  cloudapp: `${APP}/node_modules/@cloudapp/sdk/dist/cli/main.js`,
  ids: `${APP}/ids.mjs`,
  client: `${APP}/client.mjs`,
  probe: `${APP}/probe.mjs`,
  refuse: `${APP}/refuse.mjs`,
  stream: `${APP}/stream.mjs`,
} as const

export type Program = keyof typeof PROGRAMS

const FOLDER = '/srv/parties'

/** The demo's parties as processes of dom0, each but the broker under a user and in a private folder of its own. */
export class Dom0Parties implements AsyncDisposable {
  private readonly running: string[] = []

  private constructor(private readonly xen: XenHost) {}

  static async install(xen: XenHost): Promise<Dom0Parties> {
    const folders = Object.entries(UIDS).map(
      ([name, uid]) => `mkdir -m 0700 ${FOLDER}/${name} && chown ${uid}:${uid} ${FOLDER}/${name}`,
    )
    // The service domain announces its socket in the folder of sockets; nobody else may.
    await xen.dom0.run(`rm -rf ${FOLDER}; mkdir -p ${FOLDER}/run && chmod 1777 ${FOLDER}/run
${folders.join(' && ')}`)
    return new Dom0Parties(xen)
  }

  file(party: Party, name: string): string {
    return `${FOLDER}/${party}/${name}`
  }

  socket(name: string): string {
    return `${FOLDER}/run/${name}.sock`
  }

  /** Writes a file of a party; it appears whole. */
  async write(party: Party, name: string, content: string): Promise<void> {
    const file = this.file(party, name)
    await this.xen.dom0.push(`${file}.part`, content, 0o600)
    const user = `${UIDS[party]}:${UIDS[party]}`
    await this.xen.dom0.run(`chown ${user} '${file}.part' && mv '${file}.part' '${file}'`)
  }

  /** Runs one of the party's programs to its end. */
  run(party: Party, program: Program, args: readonly string[], options: GuestRunOptions = {}): Promise<GuestOutput> {
    return this.xen.dom0.run(this.line(party, program, args), { timeoutMs: 240_000, ...options })
  }

  /** Runs one of `cloudapp`'s commands that must work, and gives its one JSON document. */
  async json<T>(party: Party, args: readonly string[]): Promise<T> {
    return JSON.parse((await this.run(party, 'cloudapp', [...args, '--json'])).stdout) as T
  }

  /** Starts one that goes on; ended with the parties at the latest. */
  async start(party: Party, program: Program, args: readonly string[]): Promise<void> {
    const log = `/tmp/${program}.log`
    // exec twice: the pid is the program's own.
    const script = `(echo $BASHPID > ${log}.pid; ${this.line(party, program, args)}) > ${log} 2>&1 < /dev/null &`
    await this.xen.dom0.run(`bash -c ${quoted(script)}`)
    this.running.push(program)
  }

  /** Waits until a program that goes on has said a line like this, and gives it. */
  async said(program: Program, pattern: string): Promise<string> {
    const log = `/tmp/${program}.log`
    const gone = `[ -e /proc/$(cat ${log}.pid) ] || { cat ${log}; exit 1; }`
    const script = `until grep -m 1 -E ${quoted(pattern)} ${log}; do ${gone}; sleep 0.3; done`
    const limit = `timeout 300 sh -c ${quoted(script)} || { cat ${log}; exit 1; }`
    return (await this.xen.dom0.run(limit, { timeoutMs: 330_000 })).stdout.trim()
  }

  /** Ends what was started, the last first, and waits until it has gone. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const program of this.running.reverse()) {
      const pid = `$(cat /tmp/${program}.log.pid)`
      await this.xen.dom0.run(
        `kill ${pid}; timeout 60 sh -c 'while [ -e /proc/${pid} ]; do sleep 0.2; done' || kill -KILL ${pid}`,
        { check: false, timeoutMs: 90_000 },
      )
    }
  }

  private line(party: Party, program: Program, args: readonly string[]): string {
    const uid = UIDS[party]
    const user = uid === 0 ? '' : `setpriv --reuid ${uid} --regid ${uid} --clear-groups `
    const home = `${FOLDER}/${party}`
    return `cd ${home} && HOME=${home} exec ${user}node ${[PROGRAMS[program], ...args].map(quoted).join(' ')}`
  }
}

const quoted = (word: string): string => `'${word.replaceAll("'", `'\\''`)}'`
