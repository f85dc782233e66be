import type { PublicKey } from '../../capabilities/keys.js'
import type { SqliteFile } from './sqlite.js'

const NONE: ReadonlySet<string> = new Set()

/**
 * Who owns which VM, as the broker attested it when it redeemed a token over that VM: its root is signed by the owner. Kept
 * with the findings, which outlive the delegation they were made under.
 */
export class Owners {
  readonly #db: SqliteFile
  readonly #ownerOf = new Map<string, PublicKey>()
  readonly #vmsOf = new Map<PublicKey, Set<string>>()

  constructor(db: SqliteFile) {
    this.#db = db
    for (const { vm, key } of db.all('SELECT vm, key FROM owner') as { vm: string; key: PublicKey }[]) {
      this.#note(vm, key)
    }
  }

  /** Notes the owner of a VM; the newest word counts. Throws ERR_CLOUDAPP_STORE. */
  set(uuid: string, key: PublicKey): void {
    const vm = uuid.toLowerCase()
    if (this.#ownerOf.get(vm) === key) return
    this.#db.run('INSERT OR REPLACE INTO owner(vm, key) VALUES(?, ?)', vm, key)
    this.#note(vm, key)
  }

  /** VMs of a customer: the set itself, which changes with what is learned. */
  vmsOf(key: PublicKey): ReadonlySet<string> {
    return this.#vmsOf.get(key) ?? NONE
  }

  #note(vm: string, key: PublicKey): void {
    const before = this.#ownerOf.get(vm)
    if (before !== undefined) this.#vmsOf.get(before)?.delete(vm)
    this.#ownerOf.set(vm, key)
    const vms = this.#vmsOf.get(key)
    if (vms) vms.add(vm)
    else this.#vmsOf.set(key, new Set([vm]))
  }
}
