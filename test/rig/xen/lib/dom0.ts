import { type GuestAgent, type GuestOutput, type GuestRunOptions, Silence } from '../../lib/guest.js'
import type { Mailbox } from './mailbox.js'
import { APP } from './payload.js'

/** Generous: a busy machine emulates many times slower than a quiet one. */
const LIMIT = { timeoutMs: 180_000 }

/** How often dom0 is asked whether it lives while something runs in it, and for how long it may be silent, in ms. */
const ALIVE = { every: 30_000, timeoutMs: 180_000 }
/** Answered by its shell and by xenstored, without which no tool of Xen ends. */
const SIGN = 'xenstore-read domid'

/** The shell line that runs Node in the folder of the programs. */
export function nodeLine(args: readonly string[]): string {
  const words = args.map((arg) => `'${arg.replaceAll("'", `'\\''`)}'`).join(' ')
  return `cd ${APP} && exec node ${words}`
}

/** The control domain. */
export class Dom0 {
  private running = 0
  private timer: NodeJS.Timeout | undefined

  /** @param onSilence called once if dom0, asked for nothing but a sign of life, gives none; all its calls then fail */
  constructor(
    private readonly agent: GuestAgent,
    readonly mailbox: Mailbox,
    private readonly onSilence: () => void,
  ) {}

  /** Runs a script by dom0's shell. Scripts that are not waited for run side by side. */
  async run(script: string, options: GuestRunOptions = {}): Promise<GuestOutput> {
    if (this.running++ === 0) this.watch()
    try {
      return await this.agent.run(script, { ...LIMIT, ...options })
    } finally {
      if (--this.running === 0) clearTimeout(this.timer)
    }
  }

  /** Runs a Node program; {@link APP} is its folder. */
  node(args: readonly string[], options: GuestRunOptions = {}): Promise<GuestOutput> {
    return this.run(nodeLine(args), options)
  }

  private watch(): void {
    this.timer = setTimeout(async () => {
      try {
        await this.agent.run(SIGN, { ...ALIVE, check: false })
      } catch (error) {
        // Ended otherwise, it has said so.
        if (!(error instanceof Silence)) return
        this.onSilence()
        this.agent.fail(new Error(`dom0 gave no sign of life for ${ALIVE.timeoutMs} ms`))
        return
      }
      if (this.running > 0) this.watch()
    }, ALIVE.every)
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
