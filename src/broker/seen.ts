import type { PublicKey } from '../capabilities/keys.js'
import type { VerifiedToken } from '../capabilities/verify.js'

/** Holders can make any number of blocks; the one that was used longest ago is forgotten first. */
const MAX_BLOCKS = 65_536

/**
 * Blocks of the tokens that were redeemed since the broker started. Only a remark to owners hangs on it, whether they mistyped what
 * they revoke: what it forgets makes nothing valid.
 */
export class SeenBlocks {
  readonly #blocks = new Set<string>()

  add({ issuer, ids }: Pick<VerifiedToken, 'issuer' | 'ids'>): void {
    for (const id of ids) {
      const key = `${issuer} ${id}`
      this.#blocks.delete(key)
      this.#blocks.add(key)
    }
    for (const oldest of this.#blocks) {
      if (this.#blocks.size <= MAX_BLOCKS) break
      this.#blocks.delete(oldest)
    }
  }

  has(issuer: PublicKey, block: string): boolean {
    return this.#blocks.has(`${issuer} ${block}`)
  }
}
