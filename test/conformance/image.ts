import { type Space, virtualSpace } from '../../src/vmi/memory.js'
import { Bits, ImageBuilder } from './image-builder.js'
import { PA, PERMISSIONS, VA } from './image-places.js'
import { type Structures, structures } from './image-structures.js'

export { Bits, ImageBuilder } from './image-builder.js'
export { PA, PERMISSIONS, VA } from './image-places.js'
export type { Structures } from './image-structures.js'

const { Present, Write, User, Large, NoExecute } = Bits
const PAGE = 4096n
const MiB = 1024n * 1024n

export interface ConformanceImage {
  readonly ram: Uint8Array
  readonly four: Space
  readonly five: Space
  readonly structures: Structures
}

/** Builds the guest image of the memory conformance suite: 4 MiB of RAM. */
export function buildImage(): ConformanceImage {
  const image = new ImageBuilder(4n * MiB, PA.tables)
  const four = image.table()
  const five = image.table()
  for (const [root, levels] of [[four, 4] as const, [five, 5] as const]) mapAll(image, root, levels)
  image.entry(five, 5, 1, VA.wide, PA.structures | Present)

  for (let i = 0; i < 4; i++) image.bytes(PA.scattered + BigInt(i) * PAGE, new Uint8Array(4096).fill(0x41 + i))
  for (let i = 0n; i < 4096n; i += 8n) image.u64(PA.large + i, 0x1a60_0000n + i)
  image.u64(4n * MiB - 8n, 0xfeed_face_cafe_beefn)
  for (const offset of [0n, 0x1000n, 0x2abcn]) image.text(PA.patterns + offset, 'needle-one')
  // Over the border of two pages.
  image.text(PA.patterns + 0x4000n - 5n, 'needle-two')
  // In virtual memory only: the end of scattered page 3 and the beginning of page 1.
  image.text(PA.scattered + 4n * PAGE - 4n, 'spli')
  image.text(PA.scattered + 1n * PAGE, 't-pattern')

  return { ram: image.ram, four: virtualSpace(four, 4), five: virtualSpace(five, 5), structures: structures(image) }
}

function mapAll(image: ImageBuilder, root: bigint, levels: 4 | 5): void {
  const page = (va: bigint, entry: bigint) => image.entry(root, levels, 1, va, entry)
  for (let pa = 0n; pa < 2n * MiB; pa += PAGE) {
    if (pa !== PA.hole) page(VA.direct + pa, pa | Present | Write | NoExecute)
  }
  image.entry(root, levels, 2, VA.large, PA.large | Present | Write | NoExecute | Large)
  image.entry(root, levels, 3, VA.huge, Present | Large)
  for (const [i, from] of [3n, 1n, 2n].entries()) {
    page(VA.scattered + BigInt(i) * PAGE, (PA.scattered + from * PAGE) | Present | NoExecute)
  }
  // Behind the hole, what follows page 2 in RAM.
  page(VA.scattered + 4n * PAGE, (PA.scattered + 3n * PAGE) | Present | NoExecute)
  for (const [i, [bits]] of PERMISSIONS.entries()) {
    const at = BigInt(i) * PAGE
    page(VA.permissions + at, (PA.permissions + at) | Present | bits)
  }
  page(VA.narrowed, PA.permissions | Present | Write | User)
  // A level above that is neither writable, nor for users, nor executable.
  const above = image.table()
  image.entry(root, levels, 2, VA.narrowed, above | Present | NoExecute)
  image.u64(above, PA.permissions | Present | Write | User)

  image.entry(root, levels, 4, VA.noRoot, 0x1234_5000n)
  image.entry(root, levels, 3, VA.noLevel3, 0x1234_5000n)
  image.entry(root, levels, 2, VA.noLevel2, 0x1234_5000n)
  image.entry(root, levels, 1, VA.noLevel1, 0x1234_5000n)
  image.entry(root, levels, 4, VA.reservedRoot, Present | Large)
  image.entry(root, levels, 3, VA.reservedLevel3, Present | Large | (1n << 13n))
  image.entry(root, levels, 2, VA.reservedLevel2, Present | Large | (1n << 20n))
  image.entry(root, levels, 2, VA.tableOutside, 0x7fff_f000n | Present)
  image.entry(root, levels, 1, VA.pageOutside, 0x7fff_f000n | Present)
  image.entry(root, levels, levels, levels === 4 ? VA.self4 : VA.self5, root | Present | Write | User)
}
