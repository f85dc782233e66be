/** Where the first instructions of a function lead, if they divert it at all. */
export interface Branch {
  /**
   * `call`, `jump`: control goes to `target`. `indirect`: it goes to the address stored at `pointer`.
   * `breakpoint`: INT3 stands where the first instruction was.
   */
  readonly kind: 'call' | 'jump' | 'indirect' | 'breakpoint'
  /** Offset of the instruction from the function's first byte. */
  readonly offset: number
  readonly target?: bigint
  readonly pointer?: bigint
}

/** Bytes of a function's entry that {@link entryBranch} looks at. */
export const ENTRY_BYTES = 32

const MASK = (1n << 64n) - 1n

/**
 * Decodes the branch at a function's entry, if there is one, from its first bytes. Knows the shapes a detour takes:
 * CALL and JMP rel32, JMP rel8, JMP and CALL through memory (RIP-relative and absolute), PUSH imm32 + RET, and MOV r64,
 * imm64 followed by JMP, CALL or PUSH + RET; also INT3. An ENDBR64, NOPs of any length and the frame set-up
 * (PUSH RBP; MOV RBP, RSP) that may stand before it are passed over.
 * Source: Intel SDM vol. 2, instruction reference.
 *
 * @param bytes the first bytes of the function, at most {@link ENTRY_BYTES} are looked at
 * @param address the address of the first byte
 */
export function entryBranch(bytes: Uint8Array, address: bigint): Branch | undefined {
  const view = new DataView(bytes.buffer, bytes.byteOffset, Math.min(bytes.byteLength, ENTRY_BYTES))
  let at = 0
  for (;;) {
    const skip = passOver(view, at)
    if (skip === 0) break
    at += skip
  }
  return branchAt(view, at, address)
}

function u8(view: DataView, at: number): number {
  return at < view.byteLength ? view.getUint8(at) : -1
}

function relative(view: DataView, at: number, size: number, next: bigint): bigint | undefined {
  if (at + size > view.byteLength) return undefined
  const displacement = size === 1 ? BigInt(view.getInt8(at)) : BigInt(view.getInt32(at, true))
  return (next + displacement) & MASK
}

/** Length of an instruction at `at` that does not count as the function's first, or 0. */
function passOver(view: DataView, at: number): number {
  const a = u8(view, at)
  const b = u8(view, at + 1)
  if (a === 0xf3 && b === 0x0f && u8(view, at + 2) === 0x1e && u8(view, at + 3) === 0xfa) return 4 // ENDBR64
  if (a === 0x90) return 1
  if (a === 0x66 && b === 0x90) return 2
  if (a === 0x55) return 1 // PUSH RBP
  if (a === 0x48 && b === 0x89 && u8(view, at + 2) === 0xe5) return 3 // MOV RBP, RSP
  return longNop(view, at)
}

/** NOP r/m (0F 1F /0) with any prefixes, or 0. */
function longNop(view: DataView, at: number): number {
  let p = at
  while (u8(view, p) === 0x66 || u8(view, p) === 0x2e) p++
  if (u8(view, p) !== 0x0f || u8(view, p + 1) !== 0x1f) return 0
  const modrm = u8(view, p + 2)
  if (modrm < 0) return 0
  const mod = modrm >> 6
  const rm = modrm & 7
  let length = p + 3 - at
  if (mod !== 3 && rm === 4) length++
  if (mod === 1) length += 1
  if (mod === 2 || (mod === 0 && rm === 5)) length += 4
  return length
}

function branchAt(view: DataView, at: number, address: bigint): Branch | undefined {
  const op = u8(view, at)
  const from = address + BigInt(at)
  switch (op) {
    case 0xcc:
      return { kind: 'breakpoint', offset: at }
    case 0xe8:
    case 0xe9: {
      const target = relative(view, at + 1, 4, from + 5n)
      return target === undefined ? undefined : { kind: op === 0xe8 ? 'call' : 'jump', offset: at, target }
    }
    case 0xeb: {
      const target = relative(view, at + 1, 1, from + 2n)
      return target === undefined ? undefined : { kind: 'jump', offset: at, target }
    }
    case 0xff:
      return throughMemory(view, at, from)
    case 0x68:
      if (u8(view, at + 5) === 0xc3) {
        return { kind: 'jump', offset: at, target: BigInt.asUintN(64, BigInt(view.getInt32(at + 1, true))) }
      }
      return pushedHigh(view, at)
    case 0x48:
    case 0x49:
      return throughRegister(view, at)
    default:
      return undefined
  }
}

/** JMP/CALL [RIP+disp32] (FF 25, FF 15) and JMP/CALL [disp32] (FF 24 25, FF 14 25). */
function throughMemory(view: DataView, at: number, from: bigint): Branch | undefined {
  const modrm = u8(view, at + 1)
  if (modrm === 0x25 || modrm === 0x15) {
    const pointer = relative(view, at + 2, 4, from + 6n)
    return pointer === undefined ? undefined : { kind: 'indirect', offset: at, pointer }
  }
  if ((modrm === 0x24 || modrm === 0x14) && u8(view, at + 2) === 0x25 && at + 7 <= view.byteLength) {
    return { kind: 'indirect', offset: at, pointer: BigInt.asUintN(64, BigInt(view.getInt32(at + 3, true))) }
  }
  return undefined
}

/** PUSH imm32; MOV DWORD [RSP+4], imm32; RET. */
function pushedHigh(view: DataView, at: number): Branch | undefined {
  if (at + 14 > view.byteLength) return undefined
  const store = [0xc7, 0x44, 0x24, 0x04]
  if (store.some((byte, i) => u8(view, at + 5 + i) !== byte) || u8(view, at + 13) !== 0xc3) return undefined
  const target = (BigInt(view.getUint32(at + 9, true)) << 32n) | BigInt(view.getUint32(at + 1, true))
  return { kind: 'jump', offset: at, target }
}

/** MOV r64, imm64 or imm32, then JMP/CALL of that register, or PUSH of it and RET. */
function throughRegister(view: DataView, at: number): Branch | undefined {
  const high = u8(view, at) === 0x49
  const op = u8(view, at + 1)
  let target: bigint
  let register: number
  let next: number
  if (op >= 0xb8 && op <= 0xbf && at + 10 <= view.byteLength) {
    target = view.getBigUint64(at + 2, true)
    register = op & 7
    next = at + 10
  } else if (op === 0xc7 && u8(view, at + 2) >> 3 === 0x18 && at + 7 <= view.byteLength) {
    target = BigInt.asUintN(64, BigInt(view.getInt32(at + 3, true)))
    register = u8(view, at + 2) & 7
    next = at + 7
  } else {
    return undefined
  }
  if (high) {
    if (u8(view, next) !== 0x41) return undefined
    next++
  }
  const a = u8(view, next)
  const b = u8(view, next + 1)
  if (a === 0xff && b === (0xe0 | register)) return { kind: 'jump', offset: at, target }
  if (a === 0xff && b === (0xd0 | register)) return { kind: 'call', offset: at, target }
  if (a === (0x50 | register) && b === 0xc3) return { kind: 'jump', offset: at, target }
  return undefined
}
