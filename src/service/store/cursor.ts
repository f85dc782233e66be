import { createCipheriv, createDecipheriv } from 'node:crypto'
import { CloudAppError } from '../../errors.js'

/** Marks a decrypted block as one of ours: a forged or foreign cursor fails on it with all but 2^-64. */
const MAGIC = 0x636c_6f75_6463_7572n

/**
 * Change sequence numbers as clients see them: one AES block under a key of the store. A bare number would tell one tenant
 * how much happens to the others; the block tells only "equal" or "not equal".
 */
export class CursorCodec {
  readonly #key: Uint8Array
  /** The last one made: a change goes to every watching client with the same cursor. */
  #last: { readonly sequence: number; readonly cursor: string } | undefined

  /** @param key - 16 bytes, kept in the store so that cursors survive a restart. */
  constructor(key: Uint8Array) {
    this.#key = key
  }

  encode(sequence: number): string {
    if (this.#last?.sequence === sequence) return this.#last.cursor
    const cursor = this.#encode(sequence)
    this.#last = { sequence, cursor }
    return cursor
  }

  #encode(sequence: number): string {
    const block = Buffer.alloc(16)
    block.writeBigUInt64BE(MAGIC, 0)
    block.writeBigUInt64BE(BigInt(sequence), 8)
    const cipher = createCipheriv('aes-128-ecb', this.#key, null).setAutoPadding(false)
    return Buffer.concat([cipher.update(block), cipher.final()]).toString('base64url')
  }

  /** Throws ERR_CLOUDAPP_INVALID_ARGUMENT for a cursor this store has not given out. */
  decode(cursor: string): number {
    const block = /^[A-Za-z0-9_-]{22}$/.test(cursor) ? Buffer.from(cursor, 'base64url') : Buffer.alloc(0)
    if (block.length === 16) {
      const decipher = createDecipheriv('aes-128-ecb', this.#key, null).setAutoPadding(false)
      const plain = Buffer.concat([decipher.update(block), decipher.final()])
      const sequence = plain.readBigUInt64BE(8)
      if (plain.readBigUInt64BE(0) === MAGIC && sequence <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(sequence)
    }
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'This cursor is not one of this service domain', {
      details: { cursor: cursor.slice(0, 40) },
    })
  }
}
