import { expect, test } from 'vitest'
import { entryBranch } from '../../../../src/vmi/linux/integrity/branch.js'

const at = 0xffffffff81000000n
const hex = (text: string) => Uint8Array.from(text.split(' ').map((byte) => Number.parseInt(byte, 16)))

test.each([
  ['a plain function', '41 57 41 56 41 55', undefined],
  ['an fentry nop before a plain function', '0f 1f 44 00 00 41 57', undefined],
  ['endbr64, fentry call', 'f3 0f 1e fa e8 10 00 00 00', { kind: 'call', offset: 4, target: at + 4n + 5n + 0x10n }],
  ['a jump backwards', 'e9 fb ff ff ff', { kind: 'jump', offset: 0, target: at }],
  ['a short jump', 'eb 10', { kind: 'jump', offset: 0, target: at + 0x12n }],
  ['a jump behind the fentry nop', '0f 1f 44 00 00 e9 00 00 00 00', { kind: 'jump', offset: 5, target: at + 10n }],
  ['a jump behind the frame set-up', '55 48 89 e5 e9 00 00 00 00', { kind: 'jump', offset: 4, target: at + 9n }],
  [
    'movabs rax; jmp rax',
    '48 b8 88 77 66 55 44 33 22 11 ff e0',
    { kind: 'jump', offset: 0, target: 0x1122334455667788n },
  ],
  [
    'movabs r11; jmp r11',
    '49 bb 88 77 66 55 44 33 22 11 41 ff e3',
    { kind: 'jump', offset: 0, target: 0x1122334455667788n },
  ],
  [
    'movabs rax; call rax',
    '48 b8 88 77 66 55 44 33 22 11 ff d0',
    { kind: 'call', offset: 0, target: 0x1122334455667788n },
  ],
  [
    'movabs rax; push rax; ret',
    '48 b8 88 77 66 55 44 33 22 11 50 c3',
    { kind: 'jump', offset: 0, target: 0x1122334455667788n },
  ],
  ['mov rax, imm32; jmp rax', '48 c7 c0 00 00 00 c0 ff e0', { kind: 'jump', offset: 0, target: 0xffffffffc0000000n }],
  ['movabs into another register than the jump', '48 b8 88 77 66 55 44 33 22 11 ff e1', undefined],
  ['push imm32; ret', '68 00 00 00 c0 c3', { kind: 'jump', offset: 0, target: 0xffffffffc0000000n }],
  [
    'push low; mov high; ret',
    '68 88 77 66 55 c7 44 24 04 44 33 22 11 c3',
    { kind: 'jump', offset: 0, target: 0x1122334455667788n },
  ],
  ['jmp [rip+0]', 'ff 25 00 00 00 00', { kind: 'indirect', offset: 0, pointer: at + 6n }],
  ['call [disp32]', 'ff 14 25 00 00 00 80', { kind: 'indirect', offset: 0, pointer: 0xffffffff80000000n }],
  ['int3', 'cc 1f 44 00 00', { kind: 'breakpoint', offset: 0 }],
  ['a jump cut off by the end of the bytes', 'e9 00 00', undefined],
  ['nothing', '', undefined],
])('%s', (_, bytes, expected) => {
  expect(entryBranch(bytes === '' ? new Uint8Array() : hex(bytes), at)).toEqual(expected)
})
