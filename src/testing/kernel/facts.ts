import type { Machine } from '../machine/machine.js'
import type { Image } from './image.js'
import { type KallsymsForm, layKallsyms } from './kallsyms.js'
import type { Types } from './types.js'

/** What the kernel says about itself. */
export interface Facts {
  readonly release: string
  readonly version: number
  /** 20 bytes. */
  readonly buildId: Uint8Array
  readonly kallsyms: KallsymsForm
  /** VMCOREINFO names the kallsyms tables (Linux 6.0). */
  readonly named: boolean
}

/** One ELF note: Elf64_Nhdr of include/uapi/linux/elf.h, then name and contents, each padded to 4 bytes. */
function note(name: string, type: number, contents: Uint8Array): Uint8Array {
  const text = Buffer.from(`${name}\0`)
  const padded = (size: number) => Math.ceil(size / 4) * 4
  const out = Buffer.alloc(12 + padded(text.byteLength) + padded(contents.byteLength))
  out.writeUInt32LE(text.byteLength, 0)
  out.writeUInt32LE(contents.byteLength, 4)
  out.writeUInt32LE(type, 8)
  text.copy(out, 12)
  out.set(contents, 12 + padded(text.byteLength))
  return out
}

/** The build id among other notes: NT_GNU_BUILD_ID is 3, LINUX_ELFNOTE_BUILD_SALT 0x100. */
export function placeNotes(image: Image, facts: Facts): void {
  const notes = Buffer.concat([
    note('Xen', 6, Buffer.from('linux\0')),
    note('Linux', 0x100, Buffer.from(`${facts.release}\0`)),
    note('GNU', 3, facts.buildId),
  ])
  const at = image.take('rodata', notes.byteLength, 4)
  image.machine.setBytes(at, notes)
  image.label('__start_notes', 'R', at)
  image.label('__stop_notes', 'R', at + BigInt(notes.byteLength))
}

/** The line the kernel prints first, and names for uname. */
export function placeNames(image: Image, facts: Facts): void {
  const { machine } = image
  const version = '#1 SMP PREEMPT_DYNAMIC Mon Jan  1 00:00:00 UTC 2024'
  const banner = Buffer.from(`Linux version ${facts.release} (builder@host) (gcc 12.2.0, GNU ld 2.40) ${version}\n\0`)
  const at = image.label('linux_banner', 'D', image.take('rodata', banner.byteLength, 64))
  machine.setBytes(at, banner)
  const names = image.struct('init_uts_ns', 'uts_namespace')
  names.setAll({
    'name.sysname': 'Linux',
    'name.nodename': 'synthetic',
    'name.release': facts.release,
    'name.version': version,
    'name.machine': 'x86_64',
    'name.domainname': '(none)',
  })
}

/** Places the types between __start_BTF and __stop_BTF. */
export function placeBtf(image: Image, btf: Uint8Array): bigint {
  const at = image.take('rodata', btf.byteLength, 8)
  image.machine.setBytes(at, btf)
  image.label('__start_BTF', 'R', at)
  image.label('__stop_BTF', 'R', at + BigInt(btf.byteLength))
  return at
}

/** Places the symbol tables; address of each. */
export function placeKallsyms(image: Image, form: KallsymsForm): ReadonlyMap<string, bigint> {
  const tables = layKallsyms(image.symbols, form)
  const places = new Map(tables.sizes.map(([name, size]) => [name, image.take('rodata', size, 8)]))
  for (const [name, bytes] of tables.bytes((table) => places.get(table) as bigint)) {
    const at = places.get(name)
    if (at !== undefined) image.machine.setBytes(at, bytes)
  }
  return places
}

/** The text of VMCOREINFO: kernel/crash_core.c and arch/x86/kernel/machine_kexec_64.c. */
export function vmcoreinfoText(image: Image, types: Types, facts: Facts, tables: ReadonlyMap<string, bigint>): string {
  const { placement } = image.machine
  const hex = (value: bigint) => value.toString(16)
  const lines = [`OSRELEASE=${facts.release}`]
  if (facts.version >= 509) lines.push(`BUILD-ID=${Buffer.from(facts.buildId).toString('hex')}`)
  lines.push('PAGESIZE=4096')
  const symbol = (name: string, address = image.find(name)) => {
    if (address !== undefined) lines.push(`SYMBOL(${name})=${hex(address)}`)
  }
  for (const name of ['init_uts_ns', 'node_online_map', 'swapper_pg_dir', '_stext', 'vmap_area_list']) symbol(name)
  lines.push(`OFFSET(uts_namespace.name)=${types.offset('uts_namespace', 'name')}`)
  lines.push('NUMBER(SECTION_SIZE_BITS)=27', `NUMBER(MAX_PHYSMEM_BITS)=${placement.levels === 5 ? 52 : 46}`)
  lines.push('SIZE(page)=64', 'SIZE(list_head)=16', 'OFFSET(list_head.next)=0', 'OFFSET(list_head.prev)=8')
  lines.push(`OFFSET(vmap_area.va_start)=${types.offset('vmap_area', 'va_start')}`)
  lines.push(`OFFSET(vmap_area.list)=${types.offset('vmap_area', 'list')}`)
  if (facts.named) for (const [name, address] of tables) if (!/markers|seqs/.test(name)) symbol(name, address)
  const physBase = BigInt(placement.textPhysical) - (placement.text - 0xffff_ffff_8000_0000n)
  lines.push(`NUMBER(phys_base)=${physBase}`)
  symbol('init_top_pgt', image.symbol('swapper_pg_dir'))
  lines.push(`NUMBER(pgtable_l5_enabled)=${placement.levels === 5 ? 1 : 0}`)
  lines.push(
    `KERNELOFFSET=${hex(placement.kernelOffset)}`,
    'NUMBER(KERNEL_IMAGE_SIZE)=1073741824',
    'NUMBER(sme_mask)=0',
  )
  return `${lines.join('\n')}\n`
}

/** Stores VMCOREINFO as the kernel does: the text in a page, and the same as an ELF note in another. */
export function placeVmcoreinfo(image: Image, machine: Machine, text: string): readonly bigint[] {
  const bytes = Buffer.from(text)
  const data = machine.direct(machine.allocPages(1))
  machine.setBytes(data, bytes)
  const copy = machine.direct(machine.allocPages(2))
  machine.setBytes(copy, note('VMCOREINFO', 0, bytes))
  machine.setU64(image.symbol('vmcoreinfo_data'), data)
  machine.setU64(image.symbol('vmcoreinfo_size'), BigInt(bytes.byteLength))
  machine.setU64(image.symbol('vmcoreinfo_note'), copy)
  return [data, copy]
}
