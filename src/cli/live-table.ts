import type { WriteStream } from 'node:tty'
import type { DetectionFinding } from '../service/ocsf/types.js'
import { findingsTable } from '../service/table.js'

// ECMA-48: cursor up, erase to the end; DECAWM off and on, so that a line never takes two; DECTCEM, the cursor.
const up = (lines: number) => (lines > 0 ? `\u001b[${lines}F` : '\r')
const ERASE = '\u001b[J'
const BEGIN = '\u001b[?7l\u001b[?25l'
const END = '\u001b[?7h\u001b[?25h'

/** Frames are drawn at most so often, in ms: a flood of findings must not be a flood of frames. */
const FRAME = 100

/** Findings in a terminal, drawn anew as they change: the last of them that fit, newest at the bottom. */
export class LiveTable implements Disposable {
  readonly #terminal: WriteStream
  readonly #findings = new Map<string, DetectionFinding>()
  #status = ''
  #drawn = 0
  #timer: NodeJS.Timeout | undefined
  readonly #onResize = () => {
    // Lines were wrapped anew: what is above can not be found again.
    this.#drawn = 0
    this.#soon()
  }

  constructor(terminal: WriteStream) {
    this.#terminal = terminal
    terminal.write(BEGIN)
    terminal.on('resize', this.#onResize)
    this.#soon()
  }

  /** Findings that were told of so far. */
  get count(): number {
    return this.#findings.size
  }

  set(finding: DetectionFinding): void {
    const { uid } = finding.finding_info
    this.#findings.delete(uid)
    this.#findings.set(uid, finding)
    // More than any terminal shows is not kept.
    const oldest = this.#findings.keys().next().value
    if (this.#findings.size > 1000 && oldest !== undefined) this.#findings.delete(oldest)
    this.#soon()
  }

  /** The line under the table. */
  status(text: string): void {
    this.#status = text
    this.#soon()
  }

  /** Leaves the last frame where it is. */
  [Symbol.dispose](): void {
    clearTimeout(this.#timer)
    this.#terminal.off('resize', this.#onResize)
    this.#draw()
    this.#terminal.write(END)
  }

  #soon(): void {
    this.#timer ??= setTimeout(() => this.#draw(), FRAME)
  }

  #draw(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    // A terminal that does not know its size says 0.
    const columns = this.#terminal.columns || 80
    const rows = this.#terminal.rows || 24
    const shown = [...this.#findings.values()].slice(-Math.max(1, rows - 3))
    const table = findingsTable(shown, { width: columns - 1, color: true }).trimEnd()
    const frame = `${table}\n${this.#status.slice(0, columns - 1)}\n`
    this.#terminal.write(`${up(this.#drawn)}${ERASE}${frame}`)
    this.#drawn = frame.split('\n').length - 1
  }
}
