import { view } from '../read.js'
import type { Candidate } from './hit.js'
import { diverted, isSyscall } from './hooks.js'
import { MAX_OFFSET, startsInstruction } from './instructions.js'
import type { Kernel } from './kernel.js'
import type { UnlistedOwner } from './modules.js'
import { RangeMap } from './ranges.js'
import type { Whereabouts } from './where.js'

const CHUNK = 1 << 20
/** Chunks overlap by more than the longest instruction looked for. */
const OVERLAP = 16
/** A section larger than this is not scanned beyond it. */
const MAX_SECTION = 64 << 20
const MAX_REFERENCES = 256
const LOOKS = 2

/**
 * Everything in the kernel image that leads into code no book lists: branches in its text, function pointers in its
 * data. Finds diversions anywhere, not only at the entries the other checks know of.
 */
export async function references(
  kernel: Kernel,
  where: Whereabouts,
  unlisted: readonly UnlistedOwner[],
  options: { readonly signal?: AbortSignal },
): Promise<Candidate[]> {
  if (unlisted.length === 0) return []
  const code = new RangeMap(unlisted.map(({ start, end }) => ({ start, end, value: true as const })))
  const places: { at: bigint; target: bigint; text: boolean }[] = []
  for (const { start, end, text } of sections(kernel)) {
    for await (const { at, bytes } of chunks(kernel, start, end, options)) {
      const found = text ? branchesInto(bytes, at, code) : pointersInto(bytes, at, code)
      for (const place of found) {
        if (places.length < MAX_REFERENCES && !isBook(kernel, place.at)) places.push({ ...place, text })
      }
      if (places.length >= MAX_REFERENCES) break
    }
  }
  const real = await Promise.all(
    places.map(async ({ at, text }) => !text || (await isInstruction(kernel, at, options))),
  )
  return places
    .filter((_, i) => real[i])
    .map(({ at, target, text }) => (text ? branch : pointer)(kernel, where, at, target))
}

/**
 * Among the bytes of other instructions stand things that look like branches: some 40,000 in a kernel, and for each page of
 * hidden code one boot in forty happens to put it where one of them leads.
 */
async function isInstruction(kernel: Kernel, at: bigint, options: { readonly signal?: AbortSignal }): Promise<boolean> {
  const symbol = kernel.symbolAt(at)
  // What can not be told is a hit.
  if (symbol === undefined || symbol.offset > MAX_OFFSET) return true
  const offset = Number(symbol.offset)
  const [read] = await kernel.memory.read(
    [{ space: kernel.space, at: symbol.address, length: offset + OVERLAP }],
    options,
  )
  if (read === undefined || read.faults.length > 0) return true
  return (await startsInstruction(read.bytes, offset)) !== false
}

function branch(kernel: Kernel, where: Whereabouts, at: bigint, target: bigint): Candidate {
  const symbol = kernel.symbolAt(at)
  const entry = symbol !== undefined && isSyscall(symbol.name) ? symbol.address : at
  return {
    ...diverted(
      kernel,
      where,
      { address: entry, mechanism: 'a patched branch', target, looks: LOOKS },
      { patchedAt: at, via: where.name(at) },
    ),
  }
}

function pointer(kernel: Kernel, where: Whereabouts, at: bigint, target: bigint): Candidate {
  const symbol = kernel.symbolAt(at)
  const place = symbol === undefined ? `0x${at.toString(16)}` : `${symbol.name}+0x${symbol.offset.toString(16)}`
  return {
    hit: {
      id: `hooked-pointer:${place}`,
      kind: 'hooked-pointer',
      title: `Kernel data ${place} holds a pointer to ${where.name(target)}`,
      severity: 'high',
      evidence: where.evidence(target, { at, place }),
    },
    identity: `pointer:${at}:${target}`,
    looks: LOOKS,
  }
}

/** The bounds of all module memory, which hidden modules are in too: no way to anywhere. */
function isBook(kernel: Kernel, at: bigint): boolean {
  return kernel.symbolAt(at)?.name === 'mod_tree'
}

/**
 * What of the image is the kernel's as long as it runs. Between its sections, and inside .bss behind the decrypted part
 * (mem_encrypt_free_decrypted_mem(), arch/x86/mm/mem_encrypt_amd.c), are pages that were freed after boot and hold
 * anything since, as insmod's copies of a module's symbols.
 */
export function sections(kernel: Pick<Kernel, 'trySymbol'>): { start: bigint; end: bigint; text: boolean }[] {
  const freed = kernel.trySymbol('__start_bss_decrypted_unused') !== undefined
  const bss = freed
    ? [
        ['__bss_start', '__start_bss_decrypted_unused'],
        ['__end_bss_decrypted', '__bss_stop'],
      ]
    : [['__bss_start', '__bss_stop']]
  const names = [['_stext', '_etext'], ['__start_rodata', '__end_rodata'], ['_sdata', '_edata'], ...bss]
  return names.flatMap(([first = '', last = '']) => {
    const start = kernel.trySymbol(first)
    const end = kernel.trySymbol(last)
    return start === undefined || end === undefined || end <= start ? [] : [{ start, end, text: first === '_stext' }]
  })
}

/** A section in chunks that overlap. */
async function* chunks(
  kernel: Kernel,
  start: bigint,
  end: bigint,
  options: { signal?: AbortSignal },
): AsyncGenerator<{ at: bigint; bytes: Uint8Array }> {
  const stop = end - start > BigInt(MAX_SECTION) ? start + BigInt(MAX_SECTION) : end
  for (let at = start; at < stop; at += BigInt(CHUNK)) {
    const [read] = await kernel.memory.read(
      [{ space: kernel.space, at, length: Math.min(CHUNK, Number(stop - at)) + OVERLAP }],
      options,
    )
    if (read !== undefined) yield { at, bytes: read.bytes }
  }
}

interface Hit {
  readonly at: bigint
  readonly target: bigint
}

/** CALL and JMP rel32, and MOV r64, imm64, at any byte: text has no marks where instructions start. */
function branchesInto(bytes: Uint8Array, at: bigint, code: RangeMap<true>): Hit[] {
  const data = view(bytes)
  // Distances from the chunk are small enough for numbers: most branches are passed over without a bigint.
  const [least, most] = [Number(code.start - at), Number(code.end - at)]
  const hits: Hit[] = []
  const end = bytes.byteLength - OVERLAP
  for (let i = 0; i < end; i++) {
    const byte = bytes[i] as number
    if ((byte & 0xfe) === 0xe8) {
      const target = i + 5 + data.getInt32(i + 1, true)
      if (target < least || target >= most) continue
      const address = at + BigInt(target)
      if (code.at(address) !== undefined) hits.push({ at: at + BigInt(i), target: address })
    } else if ((byte & 0xfe) === 0x48 && ((bytes[i + 1] as number) & 0xf8) === 0xb8 && bytes[i + 9] === 0xff) {
      const target = data.getBigUint64(i + 2, true)
      if (code.at(target) !== undefined) hits.push({ at: at + BigInt(i), target })
    }
  }
  return hits
}

/** Aligned pointers. */
function pointersInto(bytes: Uint8Array, at: bigint, code: RangeMap<true>): Hit[] {
  const data = view(bytes)
  const hits: Hit[] = []
  for (let i = Number(-at & 7n); i < bytes.byteLength - OVERLAP; i += 8) {
    // Kernel code lies in the topmost 2 GiB: half of the test is enough to pass over nearly everything.
    if (data.getUint32(i + 4, true) !== 0xffffffff) continue
    const target = data.getBigUint64(i, true)
    if (code.at(target) !== undefined) hits.push({ at: at + BigInt(i), target })
  }
  return hits
}
