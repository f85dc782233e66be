import { type ChildProcessWithoutNullStreams, execFileSync, spawn } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const source = fileURLToPath(new URL('native/plain.c', import.meta.url))
const folder = fileURLToPath(new URL('../.cache/bench', import.meta.url))

/** The plain C program that does the same work, for ratios in the same run. */
export class Plain implements Disposable {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #lines: AsyncIterator<string>

  constructor(ram: string) {
    mkdirSync(folder, { recursive: true })
    const program = path.join(folder, 'plain')
    execFileSync('gcc', ['-O2', '-Wall', '-Wextra', '-Werror', '-o', program, source])
    this.#child = spawn(program, [ram])
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()
  }

  async ask(order: string): Promise<bigint[]> {
    this.#child.stdin.write(`${order}\n`)
    const { value, done } = await this.#lines.next()
    if (done) throw new Error(`the C program ended at: ${order}`)
    return value.split(' ').map(BigInt)
  }

  [Symbol.dispose](): void {
    this.#child.stdin.end()
    this.#child.kill()
  }
}
