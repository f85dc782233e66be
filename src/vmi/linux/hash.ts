/**
 * Hash of a name's bytes for the open-addressed name tables of the profile sections (FNV-1a, 32 bits, seeded so that a
 * guest can not choose names that all fall into one slot).
 */
export function hashName(bytes: Uint8Array, start: number, end: number, seed: number): number {
  let hash = (0x811c9dc5 ^ seed) >>> 0
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ (bytes[i] as number), 0x01000193)
  hash ^= hash >>> 15
  return Math.imul(hash, 0x2c1b3c6d) >>> 0
}

/** Slots of a table for `count` names: a power of two, at most two thirds full. */
export function tableSlots(count: number): number {
  let slots = 16
  while (slots * 2 < count * 3) slots *= 2
  return slots
}

/** True if `bytes[start…]` spell `name` and the next byte ends it (NUL, or `end` reached). */
export function sameName(bytes: Uint8Array, start: number, end: number, name: Uint8Array): boolean {
  if (end - start !== name.length) return false
  for (let i = 0; i < name.length; i++) if (bytes[start + i] !== name[i]) return false
  return true
}
