import { createHash } from 'node:crypto'
import { type FileHandle, open, readFile, rename, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { syncFolder } from '../capabilities/files.js'
import type { PublicKey } from '../capabilities/keys.js'
import { CloudAppError } from '../errors.js'
import { type Deferred, deferred } from '../transport/deferred.js'
import { reservePath } from './audit/lines.js'
import { Reserve } from './audit/reserve.js'

/** What a block has used of the limits it names itself. */
export interface Usage {
  readonly uses: number
  readonly outputBytes: number
}

/** A block whose use is counted. */
export interface CountedBlock {
  /** Its signer and id. */
  readonly key: string
  /** Signer and id of the chain's root: how many blocks are counted is bounded for each. */
  readonly root: string
  /** From then on (ms UTC) no token with it is honoured any more, and its count is forgotten. */
  readonly until: number
}

type Counted = Usage & Omit<CountedBlock, 'key'>

/** Blocks of one root whose use is counted: a holder can make any number. */
const MAX_COUNTED = 4096

/** Space kept for revocations on a full disk: about 400 of them. */
const RESERVE = 64 * 1024

/** The journal is written anew if it has more than so many lines for each fact that stands, and so many besides. */
const SLACK = 4
const SLACK_LINES = 65_536

/** Which start of a VM was found at its source when it was first opened under a boot nonce of the register. */
export interface SeenStart {
  readonly uuid: string
  /** The register's. */
  readonly bootNonce: string
  /** The source's own: another one is another start. */
  readonly found: string
}

type Line =
  | { readonly kind: 'revoked'; readonly issuer: PublicKey; readonly block: string; readonly at: number }
  | ({ readonly kind: 'used' } & CountedBlock & Usage)
  | ({ readonly kind: 'started' } & SeenStart)

/**
 * What the broker must never forget: revoked blocks, how much of a limited block is used up, and which start of a VM it has
 * opened. An append-only journal of lines, each with a checksum, synced before the caller goes on; read back at start. Waiting lines share a sync.
 */
export class BrokerState {
  readonly #path: string
  readonly #reserve: Reserve
  readonly #revoked = new Map<string, number>()
  readonly #used = new Map<string, Counted>()
  /** Counted blocks, by root. */
  readonly #counted = new Map<string, number>()
  readonly #starts = new Map<string, SeenStart>()
  readonly #now: () => number
  #file: FileHandle
  #length: number
  #lines: number
  #queue: { readonly text: string; readonly vital: boolean; readonly done: Deferred<void> }[] = []
  #flushing: Promise<void> | undefined

  private constructor(
    path: string,
    file: FileHandle,
    length: number,
    lines: number,
    reserve: Reserve,
    now: () => number,
  ) {
    this.#path = path
    this.#file = file
    this.#length = length
    this.#lines = lines
    this.#reserve = reserve
    this.#now = now
  }

  /**
   * Opens the state in `folder`, which must exist.
   *
   * @param now milliseconds since 1970 UTC, of a clock that never goes back
   * @throws CloudAppError `ERR_CLOUDAPP_STORE` if the journal was damaged: what it forgot could be a revocation.
   */
  static async open(folder: string, now: () => number = Date.now): Promise<BrokerState> {
    const path = join(folder, 'state.journal')
    let text = ''
    try {
      text = await readFile(path, 'utf8')
    } catch (cause) {
      if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw storeError('can not be read', cause)
    }
    try {
      const reserve = Reserve.open(path, RESERVE)
      // A last line without its end was torn by a crash, and nobody was told that it was written.
      const whole = text.slice(0, text.lastIndexOf('\n') + 1)
      const lines = [...parse(whole), ...parse(reserve.lines().toString('utf8'))]
      const file = await open(path, 'a', 0o600)
      await file.truncate(Buffer.byteLength(whole))
      const state = new BrokerState(path, file, Buffer.byteLength(whole), lines.length, reserve, now)
      for (const line of lines) state.#apply(line)
      if (reserve.used > 0 || state.#slack > 64) await state.#compact()
      await syncFolder(dirname(path))
      return state
    } catch (cause) {
      throw CloudAppError.is(cause) ? cause : storeError('can not be opened', cause)
    }
  }

  /** When the block was revoked (ms UTC), or undefined. Only the issuer of a chain can have revoked blocks of it. */
  revokedAt(issuer: PublicKey, block: string): number | undefined {
    return this.#revoked.get(`${issuer} ${block}`)
  }

  /** Holds at once; resolves when it is on the disk. Succeeds on a full disk too. */
  async revoke(issuer: PublicKey, block: string, at: number): Promise<void> {
    if (this.#revoked.has(`${issuer} ${block}`)) return this.flushed()
    const line: Line = { kind: 'revoked', issuer, block, at }
    this.#apply(line)
    await this.#append(line, true)
  }

  usage(key: string): Usage {
    return this.#used.get(key) ?? { uses: 0, outputBytes: 0 }
  }

  /** True if the use of this block is counted, or can be. */
  hasRoom({ key, root }: CountedBlock): boolean {
    if (this.#used.has(key) || (this.#counted.get(root) ?? 0) < MAX_COUNTED) return true
    this.#forget()
    return (this.#counted.get(root) ?? 0) < MAX_COUNTED
  }

  /** Holds at once; resolves when it is on the disk. @throws CloudAppError `ERR_CLOUDAPP_STORE` */
  async use({ key, root, until }: CountedBlock, { uses, outputBytes }: Usage): Promise<void> {
    const line: Line = { kind: 'used', key, root, until, uses, outputBytes }
    this.#apply(line)
    await this.#append(line, false)
  }

  /** The start of this VM that was opened last. */
  start(uuid: string): SeenStart | undefined {
    return this.#starts.get(uuid)
  }

  /** Holds once it is on the disk. @throws CloudAppError `ERR_CLOUDAPP_STORE` */
  async started(start: SeenStart): Promise<void> {
    const line: Line = { kind: 'started', ...start }
    await this.#append(line, false)
    this.#apply(line)
  }

  /** Forgets the starts of VMs that the register no longer has: one that comes back gets another boot nonce. */
  keepStarts(registered: (uuid: string) => boolean): void {
    for (const uuid of this.#starts.keys()) if (!registered(uuid)) this.#starts.delete(uuid)
  }

  /** Resolves when everything given so far is on the disk. */
  async flushed(): Promise<void> {
    while (this.#flushing !== undefined) await this.#flushing
  }

  async close(): Promise<void> {
    await this.flushed().catch(() => undefined)
    await this.#file.close()
    this.#reserve.close()
  }

  #apply(line: Line): void {
    if (line.kind === 'revoked') this.#revoked.set(`${line.issuer} ${line.block}`, line.at)
    else if (line.kind === 'started') {
      const { uuid, bootNonce, found } = line
      this.#starts.set(uuid, { uuid, bootNonce, found })
    } else {
      const { key, root, until, uses, outputBytes } = line
      if (!this.#used.has(key)) this.#counted.set(root, (this.#counted.get(root) ?? 0) + 1)
      this.#used.set(key, { root, until, uses, outputBytes })
    }
  }

  /** Lines of the journal past those that are due. */
  get #slack(): number {
    return this.#lines - SLACK * (this.#revoked.size + this.#used.size + this.#starts.size)
  }

  /** Lets go of counts that nobody asks for any more. */
  #forget(): void {
    const now = this.#now()
    for (const [key, { until, root }] of this.#used) {
      if (until > now) continue
      this.#used.delete(key)
      const left = (this.#counted.get(root) ?? 1) - 1
      if (left === 0) this.#counted.delete(root)
      else this.#counted.set(root, left)
    }
  }

  #append(line: Line, vital: boolean): Promise<void> {
    const done = deferred<void>()
    this.#queue.push({ text: encode(line), vital, done })
    this.#flushing ??= this.#flush().finally(() => {
      this.#flushing = undefined
    })
    return done.promise
  }

  async #flush(): Promise<void> {
    while (this.#queue.length > 0) {
      const batch = this.#queue
      this.#queue = []
      try {
        await this.#write(Buffer.from(batch.map(({ text }) => text).join('')))
        this.#lines += batch.length
        for (const { done } of batch) done.resolve()
        // A count that goes up all day must not fill the disk.
        if (this.#slack > SLACK_LINES) await this.#compact()
      } catch (cause) {
        for (const { text, vital, done } of batch) {
          if (vital && this.#reserve.add(Buffer.from(text))) done.resolve()
          else done.reject(storeError('can not be written', cause))
        }
      }
    }
  }

  async #write(bytes: Buffer): Promise<void> {
    try {
      let at = 0
      while (at < bytes.length) at += (await this.#file.write(bytes, at)).bytesWritten
      await this.#file.datasync()
      this.#length += bytes.length
    } catch (error) {
      // Half a line must not stand before the next one.
      await this.#file.truncate(this.#length).catch(() => undefined)
      throw error
    }
  }

  /** Writes the facts that stand into a new journal and puts it in the old one's place. */
  async #compact(): Promise<void> {
    this.#forget()
    const lines: string[] = []
    for (const [name, at] of this.#revoked) {
      const [issuer, block] = name.split(' ') as [PublicKey, string]
      lines.push(encode({ kind: 'revoked', issuer, block, at }))
    }
    for (const [key, usage] of this.#used) lines.push(encode({ kind: 'used', key, ...usage }))
    for (const start of this.#starts.values()) lines.push(encode({ kind: 'started', ...start }))
    const fresh = `${this.#path}.new`
    let file: FileHandle | undefined
    try {
      file = await open(fresh, 'w', 0o600)
      await file.writeFile(lines.join(''))
      await file.sync()
      await file.close()
      await rename(fresh, this.#path)
    } catch {
      // A full disk: the old journal and the reserve go on holding everything. Tried again when as much was added.
      await file?.close().catch(() => undefined)
      this.#lines = 0
      return
    }
    await syncFolder(dirname(this.#path))
    await this.#file.close()
    this.#file = await open(this.#path, 'a', 0o600)
    this.#length = (await stat(this.#path)).size
    this.#lines = lines.length
    this.#reserve.clear()
  }
}

/**
 * What a broker has revoked, read beside it: a predicate by issuer and block, as things stand now.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if no broker ever kept its state in `folder`, `ERR_CLOUDAPP_STORE` if it is
 *   damaged.
 */
export async function readRevocations(folder: string): Promise<(issuer: PublicKey, block: string) => boolean> {
  const path = join(folder, 'state.journal')
  const read = async (file: string): Promise<string> => {
    const bytes = await readFile(file)
    const nul = bytes.indexOf(0)
    // A line without its end is being written, or was torn: nobody was told that it holds.
    const text = bytes.toString('utf8', 0, nul < 0 ? bytes.length : nul)
    return text.slice(0, text.lastIndexOf('\n') + 1)
  }
  let lines: Line[]
  try {
    lines = [...parse(await read(path)), ...parse(await read(reservePath(path)))]
  } catch (cause) {
    if (CloudAppError.is(cause)) throw cause
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw storeError('can not be read', cause)
    throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `${folder} is no broker's state folder`, { cause })
  }
  const revoked = new Set(lines.flatMap((line) => (line.kind === 'revoked' ? [`${line.issuer} ${line.block}`] : [])))
  return (issuer, block) => revoked.has(`${issuer} ${block}`)
}

function encode(line: Line): string {
  const json = JSON.stringify(line)
  return `${checksum(json)} ${json}\n`
}

function parse(text: string): Line[] {
  return text
    .split('\n')
    .slice(0, -1)
    .map((row, i) => {
      const json = row.slice(17)
      if (row.slice(0, 16) !== checksum(json)) throw storeError(`is damaged at line ${i + 1}`)
      return JSON.parse(json) as Line
    })
}

function checksum(json: string): string {
  return createHash('sha256').update('cloudapp broker state v1\0').update(json).digest('hex').slice(0, 16)
}

function storeError(what: string, cause?: unknown): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_STORE', `The broker's state ${what}`, { cause })
}
