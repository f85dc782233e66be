import type { GuestAgent, GuestOutput, GuestRunOptions } from '../../lib/guest.js'
import type { Mailbox } from './mailbox.js'
import { APP } from './payload.js'

/** Generous: a busy machine emulates many times slower than a quiet one. */
const LIMIT = { timeoutMs: 180_000 }

/** The shell line that runs Node in the folder of the programs. */
export function nodeLine(args: readonly string[]): string {
  const words = args.map((arg) => `'${arg.replaceAll("'", `'\\''`)}'`).join(' ')
  return `cd ${APP} && exec node ${words}`
}

/** The control domain. */
export class Dom0 {
  constructor(
    private readonly agent: GuestAgent,
    readonly mailbox: Mailbox,
  ) {}

  /** Runs a script by dom0's shell. Scripts that are not waited for run side by side. */
  run(script: string, options: GuestRunOptions = {}): Promise<GuestOutput> {
    return this.agent.run(script, { ...LIMIT, ...options })
  }

  /** Runs a Node program; {@link APP} is its folder. */
  node(args: readonly string[], options: GuestRunOptions = {}): Promise<GuestOutput> {
    return this.run(nodeLine(args), options)
  }

  /** Writes a file. */
  push(name: string, content: Uint8Array | string, mode = 0o644): Promise<void> {
    return this.mailbox.push(this, '/rig/mailbox', name, content, mode)
  }

  /** Reads a file. */
  pull(name: string): Promise<Buffer> {
    return this.mailbox.pull(this, '/rig/mailbox', name)
  }
}
