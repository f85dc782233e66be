import { expect, it } from 'vitest'
import { startsInstruction } from '../../../../src/vmi/linux/integrity/instructions.js'

// mov rbp, rsp; mov eax, [rip + 0xe8]; call +0x1234; jmp -2, from the Intel SDM's tables of opcodes.
const CODE = Uint8Array.of(
  ...[0x48, 0x89, 0xe5],
  ...[0x8b, 0x05, 0xe8, 0x00, 0x00, 0x00],
  ...[0xe8, 0x34, 0x12, 0x00, 0x00],
  ...[0xeb, 0xfe],
)

it('tells a call from the bytes of one inside of another instruction', async () => {
  const starts: number[] = []
  for (let at = 0; at < CODE.byteLength; at++) if (await startsInstruction(CODE, at)) starts.push(at)
  expect(starts).toEqual([0, 3, 9, 14])
  expect(await startsInstruction(CODE, 5)).toBe(false)
})

it('does not decide what it can not tell', async () => {
  // 06 is no instruction in 64-bit mode (Intel SDM vol. 2, table A-2).
  expect(await startsInstruction(Uint8Array.of(0x06, 0x90, 0xe8, 0, 0, 0, 0), 2)).toBe(undefined)
  expect(await startsInstruction(CODE, CODE.byteLength)).toBe(undefined)
  expect(await startsInstruction(new Uint8Array(70_000).fill(0x90), 65_537)).toBe(undefined)
})
