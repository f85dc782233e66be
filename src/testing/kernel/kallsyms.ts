/** A symbol as kallsyms has it. */
export interface KernelSymbolEntry {
  readonly name: string
  /** The letter nm gives it. */
  readonly type: string
  readonly address: bigint
  /** A number that KASLR does not move: per-CPU variables before Linux 6.15. */
  readonly absolute?: boolean
}

/** How a release lays its tables out. Source: scripts/kallsyms.c and kernel/kallsyms.c of each. */
export interface KallsymsForm {
  /** 6.4 moved the address tables behind the token tables. */
  readonly offsetsLast: boolean
  /** 6.2 added a table of symbols by name. */
  readonly seqs: boolean
  /** `absolute-percpu` (to 6.14): sign of an offset tells absolute symbols; `relative` (6.15): from the base;
   *  `place` (7.0): from the table's own entry, there is no base. */
  readonly offsets: 'absolute-percpu' | 'relative' | 'place'
  /** 6.1: a name may be longer than 127 bytes; its length then takes two. */
  readonly longNames: boolean
}

export function kallsymsForm(version: number): KallsymsForm {
  return {
    offsetsLast: version >= 604,
    seqs: version >= 602,
    offsets: version >= 700 ? 'place' : version >= 615 ? 'relative' : 'absolute-percpu',
    longNames: version >= 601,
  }
}

/** Pieces of names that get a token, longest first; every byte that stands for itself keeps its own. */
const PIECES = [
  '__x64_sys_',
  '__ia32_sys_',
  '__do_sys_',
  'T__x64_sys_',
  't__do_sys_',
  'T__ia32_sys_',
  '_register',
  'kernel_',
  '_handler',
  'request',
  '_device',
  'module',
  'context',
  'sched_',
  'alloc_',
  'notif',
  'percpu',
  'update_',
  'device',
  'kmem_',
  'thread',
  'signal',
  '_queue',
  'proc_',
  '_init',
  '_free',
  'task_',
  'trace',
  'event',
  '_lock',
  '_page',
  'inode',
  'time',
  'get_',
  'set_',
  'put_',
  'sock',
  'read',
  'list',
  'tion',
  'file',
  'node',
  'ing',
  'ker',
  'ent',
  'sys',
  'bpf',
  'acc',
  'add',
  'end',
  'irq',
  'net',
  're',
  'er',
  'st',
  'in',
  'an',
  'te',
  'se',
  'en',
  'al',
  'or',
  'on',
  '_s',
  '_p',
  '_t',
  'it',
  'de',
  'co',
  'le',
  'ch',
  'ro',
  'es',
] as const

/** The tables of one kernel, to be placed and then filled with addresses. */
export interface KallsymsTables {
  /** In the order of the addresses. */
  readonly symbols: readonly KernelSymbolEntry[]
  /** Bytes of each table by the name of its symbol, in the order they lie in memory. */
  readonly sizes: readonly (readonly [name: string, size: number])[]
  /** The tables' bytes, once it is known where they lie. */
  bytes(address: (table: string) => bigint): Map<string, Uint8Array>
}

/** Compresses symbol names and lays the tables out. */
export function layKallsyms(unsorted: readonly KernelSymbolEntry[], form: KallsymsForm): KallsymsTables {
  const symbols = [...unsorted].sort((a, b) => (a.address < b.address ? -1 : a.address > b.address ? 1 : 0))
  const tokens = chooseTokens(symbols)
  const { names, markers } = encodeNames(symbols, tokens, form)
  const table = Buffer.from(`${tokens.join('\0')}\0`, 'latin1')
  const index = Buffer.alloc(512)
  let at = 0
  tokens.forEach((token, i) => {
    index.writeUInt16LE(at, i * 2)
    at += token.length + 1
  })
  const count = Buffer.alloc(4)
  count.writeUInt32LE(symbols.length)
  const fixed: Record<string, Uint8Array> = {
    kallsyms_num_syms: count,
    kallsyms_names: names,
    kallsyms_markers: markers,
    kallsyms_token_table: table,
    kallsyms_token_index: index,
    ...(form.seqs ? { kallsyms_seqs_of_names: byName(symbols) } : {}),
  }
  const sizeOf = (name: string) =>
    name === 'kallsyms_offsets'
      ? symbols.length * 4
      : name === 'kallsyms_relative_base'
        ? 8
        : (fixed[name] as Uint8Array).length
  return {
    symbols,
    sizes: order(form).map((name) => [name, sizeOf(name)]),
    bytes: (address) => new Map([...Object.entries(fixed), ...addresses(symbols, form, address)]),
  }
}

function order(form: KallsymsForm): string[] {
  const places = ['kallsyms_offsets', ...(form.offsets === 'place' ? [] : ['kallsyms_relative_base'])]
  const tokens = ['kallsyms_token_table', 'kallsyms_token_index']
  const seqs = form.seqs ? ['kallsyms_seqs_of_names'] : []
  const names = ['kallsyms_num_syms', 'kallsyms_names', 'kallsyms_markers']
  return form.offsetsLast ? [...names, ...tokens, ...places, ...seqs] : [...places, ...names, ...seqs, ...tokens]
}

function addresses(
  symbols: readonly KernelSymbolEntry[],
  form: KallsymsForm,
  address: (table: string) => bigint,
): [string, Uint8Array][] {
  const offsets = Buffer.alloc(symbols.length * 4)
  const base = symbols.find((symbol) => symbol.absolute !== true)?.address ?? 0n
  const start = form.offsets === 'place' ? address('kallsyms_offsets') : 0n
  symbols.forEach((symbol, i) => {
    let value: bigint
    if (form.offsets === 'place') value = symbol.address - (start + BigInt(i * 4))
    else if (form.offsets === 'relative') value = symbol.address - base
    else value = symbol.absolute === true ? symbol.address : base - 1n - symbol.address
    offsets.writeInt32LE(Number(BigInt.asIntN(32, value)), i * 4)
  })
  if (form.offsets === 'place') return [['kallsyms_offsets', offsets]]
  const relative = Buffer.alloc(8)
  relative.writeBigUInt64LE(base)
  return [
    ['kallsyms_offsets', offsets],
    ['kallsyms_relative_base', relative],
  ]
}

/** The 256 tokens: a byte used in a name stands for itself, the others for pieces of names. */
function chooseTokens(symbols: readonly KernelSymbolEntry[]): string[] {
  const used = new Set<number>()
  for (const char of '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_.') used.add(char.charCodeAt(0))
  for (const { name, type } of symbols) {
    for (let i = 0; i < name.length; i++) used.add(name.charCodeAt(i))
    used.add(type.charCodeAt(0))
  }
  const pieces = [...PIECES].reverse()
  return Array.from({ length: 256 }, (_, code) => (used.has(code) ? String.fromCharCode(code) : (pieces.pop() ?? '')))
}

interface Trie {
  code: number
  readonly next: Map<number, Trie>
}

function trieOf(tokens: readonly string[]): Trie {
  const root: Trie = { code: -1, next: new Map() }
  tokens.forEach((text, code) => {
    if (text === '') return
    let at = root
    for (let i = 0; i < text.length; i++) {
      const char = text.charCodeAt(i)
      let next = at.next.get(char)
      if (next === undefined) {
        next = { code: -1, next: new Map() }
        at.next.set(char, next)
      }
      at = next
    }
    at.code = code
  })
  return root
}

/** The longest token that `text` has at `from`; length 0 if there is none. */
function longest(trie: Trie, text: string, from: number): { code: number; length: number } {
  let found = { code: -1, length: 0 }
  let at: Trie | undefined = trie
  for (let i = from; i < text.length; i++) {
    at = at.next.get(text.charCodeAt(i))
    if (at === undefined) break
    if (at.code >= 0) found = { code: at.code, length: i + 1 - from }
  }
  return found
}

function encodeNames(
  symbols: readonly KernelSymbolEntry[],
  tokens: readonly string[],
  form: KallsymsForm,
): { names: Uint8Array; markers: Uint8Array } {
  const trie = trieOf(tokens)
  const out: number[] = []
  const markers = Buffer.alloc(Math.ceil(symbols.length / 256) * 4)
  symbols.forEach(({ name, type }, i) => {
    if (i % 256 === 0) markers.writeUInt32LE(out.length, (i / 256) * 4)
    const whole = type + name
    const codes: number[] = []
    for (let at = 0; at < whole.length; ) {
      const { code, length } = longest(trie, whole, at)
      if (length === 0) throw new RangeError(`symbol ${name} has a character no token stands for`)
      codes.push(code)
      at += length
    }
    if (codes.length > 127) {
      if (!form.longNames) throw new RangeError(`symbol ${name} is too long for this release`)
      out.push((codes.length & 0x7f) | 0x80, codes.length >> 7)
    } else {
      out.push(codes.length)
    }
    for (const code of codes) out.push(code)
  })
  return { names: Uint8Array.from(out), markers }
}

/** Indexes of the symbols sorted by name, three bytes each, most significant first. */
function byName(symbols: readonly KernelSymbolEntry[]): Uint8Array {
  const sorted = symbols.map((symbol, i) => ({ name: symbol.name, i }))
  sorted.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.i - b.i))
  const out = new Uint8Array(symbols.length * 3)
  sorted.forEach(({ i }, n) => {
    out.set([(i >> 16) & 0xff, (i >> 8) & 0xff, i & 0xff], n * 3)
  })
  return out
}
