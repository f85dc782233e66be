import { describe, expect, it } from 'vitest'
import { findSyscallMsrs, parseRegisters } from '../../../src/vmi/sources/qemu-registers.js'

const cpu = (index: number, efer = '0000000000000d01'): string => `
CPU#${index}
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000000 RDI=00000000000003b4 RBP=ffffffff8e21aa40 RSP=ffffffff8e203e98
RIP=ffffffff8d2592eb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
GS =0000 ff440d725f000000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007ffe8ed59108 CR3=00000000025b8000 CR4=00751ef0
EFER=${efer}
XMM00=0000000000000004 0302000100008881
`

describe("QEMU's register dump", () => {
  it('gives what an introspector needs of every vCPU', () => {
    const vcpus = parseRegisters(cpu(0) + cpu(1))
    expect(vcpus).toHaveLength(2)
    expect(vcpus[1]).toEqual({
      index: 1,
      rip: 0xffffffff8d2592ebn,
      rsp: 0xffffffff8e203e98n,
      rflags: 0x246n,
      cr0: 0x80050033n,
      cr3: 0x25b8000n,
      cr4: 0x751ef0n,
      efer: 0xd01n,
      gsBase: 0xff440d725f000000n,
      idtBase: 0xfffffe0000000000n,
      idtLimit: 0xfff,
      gdtBase: 0xfffffe0000001000n,
    })
  })

  it('names what is not shown, and gives no zero for it', () => {
    const [vcpu] = parseRegisters(
      cpu(0)
        .replace(/^IDT.*\n/m, '')
        .replace('CR3=00000000025b8000 ', ''),
    )
    expect(vcpu).not.toHaveProperty('cr3')
    expect(vcpu).not.toHaveProperty('idtBase')
    expect(Object.keys(vcpu?.missing ?? {}).sort()).toEqual(['cr3', 'idtBase', 'idtLimit'])
  })

  it.each([
    ['nothing', ''],
    ['too many vCPUs', 'CPU#0\n'.repeat(2000)],
  ])('refuses %s', (_what, text) => {
    expect(() => parseRegisters(text)).toThrow(expect.objectContaining({ code: 'ERR_CLOUDAPP_PROTOCOL' }))
  })
})

describe("QEMU's saved device state", () => {
  const words = (...values: bigint[]): Buffer => {
    const bytes = Buffer.alloc(values.length * 8)
    for (const [i, value] of values.entries()) bytes.writeBigUInt64BE(value, i * 8)
    return bytes
  }
  const msrs = (lstar: bigint, efer = 0xd01n): Buffer =>
    words(efer, 0x0023_0010_0000_0000n, lstar, lstar + 8n, 0x257fd5n, 0xabcn)
  const state = (...parts: Buffer[]): Buffer => Buffer.concat([Buffer.from('QEVM\0\0\0\x03cpu'), ...parts])
  const vcpus = parseRegisters(cpu(0) + cpu(1))

  it('holds LSTAR of each vCPU, found by its shape', () => {
    const found = findSyscallMsrs(
      state(msrs(0xffffffff81000000n), Buffer.alloc(13, 7), msrs(0xffffffff82000000n)),
      vcpus,
    )
    expect(found).toEqual(
      new Map([
        [0, { lstar: 0xffffffff81000000n, kernelGsBase: 0xabcn }],
        [1, { lstar: 0xffffffff82000000n, kernelGsBase: 0xabcn }],
      ]),
    )
  })

  it('passes over vCPUs that do not use SYSCALL', () => {
    const sleeping = parseRegisters(cpu(0) + cpu(1, '0000000000000000'))
    const found = findSyscallMsrs(state(msrs(1n), words(0n, 0n, 0n, 0n, 0n, 0n)), sleeping)
    expect(found).toEqual(new Map([[0, { lstar: 1n, kernelGsBase: 0xabcn }]]))
  })

  it.each([
    ['another format', Buffer.from('not QEMU at all, but long enough')],
    ['nothing', Buffer.alloc(0)],
    ['too few', state(msrs(1n))],
    ['too many', state(msrs(1n), msrs(2n), msrs(3n))],
    ['a state that ends within the registers', state(msrs(1n), msrs(2n).subarray(0, 40))],
    ['other values of EFER', state(msrs(1n, 0x501n), msrs(2n, 0x501n))],
  ])('gives the reason, and no LSTAR, for %s', (_what, bytes) => {
    expect(findSyscallMsrs(bytes, vcpus)).toEqual(expect.stringContaining('QEMU'))
  })
})
