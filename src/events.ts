import { EventEmitter } from 'eventemitter3'
import type TypedEmitter from 'typed-emitter'
import type { EventMap } from 'typed-emitter'

/** The part of an emitter its user has: only what eventemitter3 and typed-emitter both know. */
export interface Events<E extends EventMap> {
  on<N extends keyof E>(event: N, listener: E[N]): void
  once<N extends keyof E>(event: N, listener: E[N]): void
  off<N extends keyof E>(event: N, listener: E[N]): void
}

/**
 * An emitter whose listeners can not hurt the one who emits: what a listener throws is given to `onError`, and the others
 * are called all the same.
 */
export class Emitter<E extends EventMap> implements Events<E> {
  readonly #emitter = new EventEmitter() as unknown as TypedEmitter.default<E>
  readonly #onError: (error: unknown) => void
  /** The same guard for the same listener, so that `off` finds it. */
  readonly #guards = new WeakMap<E[keyof E], E[keyof E]>()

  constructor(onError: (error: unknown) => void) {
    this.#onError = onError
  }

  on<N extends keyof E>(event: N, listener: E[N]): void {
    this.#emitter.on(event, this.#guard(listener))
  }

  once<N extends keyof E>(event: N, listener: E[N]): void {
    this.#emitter.once(event, this.#guard(listener))
  }

  off<N extends keyof E>(event: N, listener: E[N]): void {
    this.#emitter.off(event, this.#guard(listener))
  }

  emit<N extends keyof E>(event: N, ...args: Parameters<E[N]>): void {
    this.#emitter.emit(event, ...args)
  }

  #guard<N extends keyof E>(listener: E[N]): E[N] {
    let guard = this.#guards.get(listener) as E[N] | undefined
    if (guard === undefined) {
      guard = ((...args: Parameters<E[N]>) => {
        try {
          listener(...args)
        } catch (error) {
          this.#onError(error)
        }
      }) as E[N]
      this.#guards.set(listener, guard)
    }
    return guard
  }
}
