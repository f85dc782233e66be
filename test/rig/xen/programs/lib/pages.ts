import { type Linux, PageFlags } from '@cloudapp/sdk/vmi'

/** Starts of `count` pages below `end` that the kernel has mapped writable, in its direct map and image, each far from the last. */
export async function pagesOf({ memory, space }: Linux, count: number, end: bigint): Promise<BigUint64Array> {
  const found = await memory.pages({
    space,
    start: 0xff00_0000_0000_0000n,
    end: 1n << 64n,
    want: PageFlags.Write,
    limit: 65_536,
  })
  const all: bigint[] = []
  found.virtual.forEach((at, i) => {
    const pa = found.physical[i] as bigint
    const size = found.sizes[i] as bigint
    // Fixed mappings of devices lie outside of RAM.
    if (pa + size > end) return
    for (let offset = 0n; offset < size; offset += 4096n) all.push(at + offset)
  })
  return BigUint64Array.from({ length: count }, (_, i) => all[(i * 7919) % all.length] as bigint)
}
