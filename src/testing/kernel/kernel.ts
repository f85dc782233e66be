import type { Machine } from '../machine/machine.js'
import { Lists, StructRef } from '../machine/structs.js'
import type { Random } from '../random.js'
import type { Image } from './image.js'
import type { Types } from './types.js'

/** What the parts of the synthetic kernel share. */
export class Kernel {
  readonly lists: Lists

  constructor(
    readonly machine: Machine,
    readonly types: Types,
    readonly image: Image,
    readonly random: Random,
    readonly version: number,
  ) {
    this.lists = new Lists(machine)
  }

  /** A structure at an address. */
  at(struct: string, address: bigint): StructRef {
    return new StructRef(this.machine, this.types, struct, address)
  }

  /** A zeroed structure in memory of its own, with `extra` bytes behind it. */
  create(struct: string, extra = 0): StructRef {
    return this.at(struct, this.machine.alloc(this.types.sizeof(struct) + extra))
  }
}
