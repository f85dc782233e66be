import type { CodeMap } from './code.js'
import type { Evidence, HitEvidence } from './hit.js'
import type { Kernel } from './kernel.js'
import type { UnlistedOwner } from './modules.js'
import { RangeMap } from './ranges.js'

/** Says of an address what code it is, and whether the kernel's books account for it. */
export class Whereabouts {
  readonly #kernel: Kernel
  readonly #code: CodeMap
  readonly #unlisted: RangeMap<UnlistedOwner>

  constructor(kernel: Kernel, code: CodeMap, unlisted: readonly UnlistedOwner[]) {
    this.#kernel = kernel
    this.#code = code
    this.#unlisted = new RangeMap(unlisted.map((owner) => ({ start: owner.start, end: owner.end, value: owner })))
  }

  /** True if `address` is kernel text, a listed module, or code the kernel made for a tracer, probe or BPF program. */
  isKnown(address: bigint): boolean {
    return this.#code.known.at(address) !== undefined
  }

  /** True if `address` is kernel text. */
  isKernel(address: bigint): boolean {
    return this.#code.known.at(address)?.value.kind === 'kernel'
  }

  unlisted(address: bigint): UnlistedOwner | undefined {
    return this.#unlisted.at(address)?.value
  }

  /** Evidence of a way that leads to `target`: where that is, and in which hidden module if it is in one. */
  evidence(target: bigint, data: Readonly<Record<string, Evidence>>): HitEvidence {
    const module = this.unlisted(target)?.module?.name
    return {
      ...(module === undefined ? {} : { module }),
      data: { ...data, target, leadsTo: this.name(target) },
    }
  }

  /** `symbol+0x10`, `[module]+0x10`, or what else can be said of the place. */
  name(address: bigint): string {
    const hidden = this.unlisted(address)
    if (hidden !== undefined)
      return `[${hidden.module?.name ?? 'unlisted code'}]+0x${(address - hidden.start).toString(16)}`
    const owner = this.#code.known.at(address)
    if (owner !== undefined && owner.value.kind !== 'kernel') {
      return `[${owner.value.name}]+0x${(address - owner.start).toString(16)}`
    }
    const symbol = owner === undefined ? undefined : this.#kernel.symbolAt(address)
    if (symbol !== undefined) return `${symbol.name}+0x${symbol.offset.toString(16)}`
    return `0x${address.toString(16)}`
  }
}
