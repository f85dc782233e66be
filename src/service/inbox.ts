import { type FSWatcher, watch } from 'node:fs'
import { mkdir, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { readBounded } from '../capabilities/files.js'
import { type TokenText, tokenFromText } from '../capabilities/token.js'
import { CloudAppError } from '../errors.js'
import type { HealthState } from './health.js'

/** Characters of a token file. */
const TOKEN_BYTES = 64 * 1024
/** Token files in one folder. */
const TOKENS = 1024
/** Changes that inotify did not tell of (network file systems) are seen by then, in ms. */
const RESCAN = 5000

/** A token from its text, or from a file that only its owner can write. */
export async function readToken(pathOrText: string): Promise<TokenText> {
  const text = pathOrText.startsWith('cloudapp1.') ? pathOrText : await readBounded(pathOrText, TOKEN_BYTES, 'Token')
  const token = text.trim()
  // Read once here, so that what is no token at all is an error of the file and not of the broker.
  tokenFromText(token)
  return token as TokenText
}

interface Options {
  readonly folder: string
  readonly health: HealthState
  readonly add: (token: TokenText, from: string) => void
  readonly remove: (token: TokenText) => void
}

/** Watches a folder for `*.token` files: one put there is taken on, one taken away is let go of. */
export class Inbox {
  readonly #options: Options
  readonly #files = new Map<string, TokenText>()
  /** Files that hold no token, so far. */
  readonly #bad = new Set<string>()
  #watcher: FSWatcher | undefined
  #timer: NodeJS.Timeout | undefined
  #scanning: Promise<void> | undefined
  #again = false
  #closed = false

  private constructor(options: Options) {
    this.#options = options
  }

  /** Reads what is there and begins to watch. Throws ERR_CLOUDAPP_NOT_FOUND if there is no such folder. */
  static async open(options: Options): Promise<Inbox> {
    const inbox = new Inbox(options)
    try {
      await mkdir(options.folder, { recursive: true, mode: 0o700 })
      inbox.#watcher = watch(options.folder, { persistent: false }, () => inbox.#soon())
      inbox.#watcher.on('error', (error) => options.health.fail('inbox', error, 'service'))
    } catch (cause) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `The inbox ${options.folder} can not be watched`, { cause })
    }
    await inbox.#soon()
    inbox.#timer = setInterval(() => inbox.#soon(), RESCAN)
    inbox.#timer.unref()
    return inbox
  }

  /** Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    this.#watcher?.close()
    clearInterval(this.#timer)
    await this.#scanning
  }

  #soon(): Promise<void> {
    if (this.#scanning) {
      this.#again = true
      return this.#scanning
    }
    this.#scanning = this.#scan().finally(() => {
      this.#scanning = undefined
      if (this.#again && !this.#closed) {
        this.#again = false
        void this.#soon()
      }
    })
    return this.#scanning
  }

  async #scan(): Promise<void> {
    const { folder, health, add, remove } = this.#options
    let names: string[]
    try {
      names = (await readdir(folder)).filter((name) => name.endsWith('.token')).sort()
      if (names.length > TOKENS)
        throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `${folder} has more than ${TOKENS} tokens`)
      health.ok('inbox')
    } catch (error) {
      health.fail('inbox', error, 'service')
      return
    }
    for (const [name, token] of this.#files) {
      if (names.includes(name)) continue
      this.#files.delete(name)
      health.ok(`token ${name}`)
      remove(token)
    }
    for (const name of this.#bad) {
      if (names.includes(name)) continue
      this.#bad.delete(name)
      health.ok(`token ${name}`)
    }
    for (const name of names) {
      if (this.#closed || this.#files.has(name)) continue
      try {
        const token = await readToken(join(folder, name))
        this.#files.set(name, token)
        this.#bad.delete(name)
        add(token, name)
      } catch (error) {
        // Perhaps it is still being written: the next look tries again.
        this.#bad.add(name)
        health.fail(`token ${name}`, error, 'unknown')
      }
    }
  }
}
