import { createHash, timingSafeEqual } from 'node:crypto'
import { isPublicKey, type KeyPair, type PublicKey } from '../../capabilities/keys.js'
import { verifyPass } from '../../capabilities/pass.js'
import { CloudAppError } from '../../errors.js'
import { SdClient } from '../client.js'
import type { Connect } from '../client-link.js'

/** Connections to the service domain at once, one for each bearer. */
const CLIENTS = 64

/** A bearer's connection to the service domain, while it is used. */
export interface Held extends Disposable {
  readonly client: SdClient
}

interface Entry {
  readonly client: Promise<SdClient>
  uses: number
  /** Milliseconds since 1970 after which the bearer is good no more. */
  readonly until: number
}

/**
 * Turns what a request bears into a connection to the service domain: it decides, for each, what may be seen. A pass is
 * forwarded; the local secret stands for the gateway's own user.
 */
export class Credentials {
  readonly #connect: Connect
  readonly #secret: Uint8Array | undefined
  /** The gateway's own user as a customer. */
  readonly #key: KeyPair | undefined
  readonly #entries = new Map<string, Entry>()
  #service: PublicKey | undefined

  constructor(connect: Connect, secret: string | undefined, key: KeyPair | undefined) {
    this.#connect = (signal) => connect(signal).catch(away)
    this.#secret = secret === undefined ? undefined : digest(secret)
    this.#key = key
  }

  /** @throws CloudAppError `ERR_CLOUDAPP_PROOF`, `_EXPIRED`, `_LIMIT`, and what connecting throws. */
  async take(bearer: string): Promise<Held> {
    const hash = digest(bearer)
    const local = this.#secret !== undefined && timingSafeEqual(hash, this.#secret)
    // Checked here too, so that guesses do not reach the service domain.
    const until = local ? Number.POSITIVE_INFINITY : await this.#checkPass(bearer)
    const name = Buffer.from(hash).toString('hex')
    let entry = this.#entries.get(name)
    if (!entry) {
      this.#makeRoom()
      const client = SdClient.connect(this.#connect, {
        name: 'cloudapp gateway',
        reconnectMs: 0,
        // Never both: the key would stand in for what the pass shows.
        ...(local ? this.#key && { key: this.#key } : { pass: bearer }),
      })
      const made: Entry = { client, uses: 0, until }
      client.catch(() => this.#entries.get(name) === made && this.#entries.delete(name))
      this.#entries.set(name, made)
      entry = made
    }
    const taken = entry
    taken.uses++
    try {
      return { client: await taken.client, [Symbol.dispose]: () => void taken.uses-- }
    } catch (error) {
      taken.uses--
      throw error
    }
  }

  /** Idempotent. */
  async close(): Promise<void> {
    const clients = [...this.#entries.values()].map(({ client }) => client)
    this.#entries.clear()
    for (const result of await Promise.allSettled(clients)) {
      if (result.status === 'fulfilled') await result.value.close()
    }
  }

  async #checkPass(bearer: string): Promise<number> {
    this.#service ??= await this.#serviceKey()
    return verifyPass(bearer, { service: this.#service }).expires
  }

  async #serviceKey(): Promise<PublicKey> {
    await using client = await SdClient.connect(this.#connect, { name: 'cloudapp gateway', reconnectMs: 0 })
    const { service } = await client.describe()
    if (isPublicKey(service.key)) return service.key
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', 'The service domain names no key that a pass could be for')
  }

  #makeRoom(): void {
    const now = Date.now()
    for (const [name, entry] of this.#entries) {
      if (entry.uses === 0 && (entry.until <= now || this.#entries.size >= CLIENTS)) this.#drop(name, entry)
    }
    if (this.#entries.size >= CLIENTS) {
      throw new CloudAppError('ERR_CLOUDAPP_LIMIT', `The gateway serves ${CLIENTS} bearers at once`, {
        details: { limit: 'bearers', most: CLIENTS },
      })
    }
  }

  #drop(name: string, entry: Entry): void {
    this.#entries.delete(name)
    entry.client.then(
      (client) => client.close(),
      // It never opened: whoever asked for it was told.
      () => undefined,
    )
  }
}

/** A socket that is not there is a service domain that is away: "not found" would say that of what was asked for. */
function away(error: unknown): never {
  if (!CloudAppError.is(error, 'ERR_CLOUDAPP_NOT_FOUND')) throw error
  throw new CloudAppError('ERR_CLOUDAPP_CLOSED', `The service domain is away: ${error.message}`, { cause: error })
}

function digest(text: string): Uint8Array {
  return createHash('sha256').update('cloudapp gateway\0').update(text).digest()
}
