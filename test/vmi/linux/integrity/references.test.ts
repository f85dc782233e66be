import { expect, it } from 'vitest'
import { sections } from '../../../../src/vmi/linux/integrity/references.js'

const of = (symbols: Record<string, bigint>) => sections({ trySymbol: (name) => symbols[name] })
const IMAGE = { _stext: 0x1000n, _etext: 0x2000n, _sdata: 0x4000n, _edata: 0x5000n, __bss_start: 0x6000n }

it('takes the sections the kernel says it has, and nothing between them', () => {
  expect(of({ ...IMAGE, __bss_stop: 0xa000n })).toEqual([
    { start: 0x1000n, end: 0x2000n, text: true },
    { start: 0x4000n, end: 0x5000n, text: false },
    { start: 0x6000n, end: 0xa000n, text: false },
  ])
})

it('leaves out what of .bss was freed after boot', () => {
  const freed = { __start_bss_decrypted_unused: 0x7000n, __end_bss_decrypted: 0x9000n, __bss_stop: 0xa000n }
  expect(of({ ...IMAGE, ...freed }).slice(2)).toEqual([
    { start: 0x6000n, end: 0x7000n, text: false },
    { start: 0x9000n, end: 0xa000n, text: false },
  ])
  // As where nothing stands behind it.
  expect(of({ ...IMAGE, ...freed, __end_bss_decrypted: 0xa000n })).toHaveLength(3)
})
