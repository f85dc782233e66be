import { checkOptions } from '../options.js'
import type { ClientFinding } from './client-streams.js'
import type { DetectionFinding, Json, OcsfEvidence } from './ocsf/types.js'

export interface TableOptions {
  /** Characters of a line; that of the terminal, or 120, by default. */
  readonly width?: number
  /** ANSI colours for severities. False by default. */
  readonly color?: boolean
  /** Milliseconds since 1970 that "today" is taken from; the clock by default. */
  readonly now?: number
}

interface Column {
  readonly title: string
  /** Characters it keeps when the line is too narrow. */
  readonly least: number
  readonly right?: boolean
  /** Left out, lowest first, where the line is too narrow for all. */
  readonly drop?: number
  readonly of: (finding: DetectionFinding, now: number) => string
}

const COLUMNS: readonly Column[] = [
  { title: 'SEVERITY', least: 8, of: (f) => f.severity },
  { title: 'TITLE', least: 16, of: (f) => f.finding_info.title },
  { title: 'VM', least: 8, of: (f) => f.resources[0]?.name ?? f.resources[0]?.uid ?? '' },
  { title: 'PROCESS / MODULE', least: 12, drop: 3, of: subject },
  { title: 'STATUS', least: 6, of: (f) => (f.status_id === 2 ? 'Seen' : f.status_id === 4 ? 'Closed' : 'New') },
  { title: 'FIRST SEEN', least: 9, drop: 1, of: (f, now) => time(f.finding_info.first_seen_time, now) },
  { title: 'LAST SEEN', least: 9, of: (f, now) => time(f.finding_info.last_seen_time, now) },
  { title: 'COUNT', least: 5, right: true, drop: 2, of: (f) => String(f.count) },
]

// SGR of ECMA-48: bold red, red, yellow, cyan.
const COLORS: Readonly<Record<number, string>> = { 6: '1;31', 5: '1;31', 4: '31', 3: '33', 2: '36' }
const GAP = 2

/** Characters of a uid: 32 bits, which seldom meet among findings that a person looks at; a whole uuid. */
const UID_LEAST = 8
const UID_MOST = 36

/**
 * Findings as a table of text: a head and a line for each, cut to the width. Strings that come from a hostile VM can not
 * move the cursor, write on other lines or turn the text around: control, format and bidirectional characters are escaped.
 */
export function findingsTable(
  findings: readonly (DetectionFinding | Pick<ClientFinding, 'finding'>)[],
  options: TableOptions = {},
): string {
  checkOptions('findingsTable', options, ['width', 'color', 'now'])
  const width = options.width ?? 120
  const now = options.now ?? Date.now()
  const plain = findings.map((item) => ('finding' in item ? item.finding : item) as DetectionFinding)
  const columns = columnsFor(width, [...COLUMNS, uidColumn(plain)])
  const rows = plain.map((f) => columns.map((column) => escapeText(column.of(f, now))))
  const widths = fitWidths(columns, rows, width)
  const lines = [columns.map((column) => column.title), ...rows].map((row, line) => {
    const cells = row.map((text, i) => {
      const cell = pad(text, widths[i] as number, columns[i]?.right ?? false)
      const color = line > 0 && i === 0 && options.color ? COLORS[plain[line - 1]?.severity_id ?? 0] : undefined
      return color === undefined ? cell : `\u001b[${color}m${cell}\u001b[0m`
    })
    return cells.join(' '.repeat(GAP)).trimEnd()
  })
  return `${lines.join('\n')}\n`
}

/** Text with every control, format, bidirectional, surrogate and separator character written as an escape. */
export function escapeText(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (c) => {
    if (c === '\n') return '\\n'
    if (c === '\t') return '\\t'
    if (c === '\r') return '\\r'
    const code = c.codePointAt(0) as number
    return code < 0x100 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u{${code.toString(16)}}`
  })
}

/**
 * The end of each uid, as long as tells these findings apart: it is random, where the beginning of a uuid of version 7 is the
 * time, and the same for findings of one scan.
 */
function uidColumn(findings: readonly DetectionFinding[]): Column {
  const uids = new Set(findings.map((f) => f.finding_info.uid))
  let length = UID_LEAST
  while (length < UID_MOST && new Set([...uids].map((uid) => uid.slice(-length))).size < uids.size) length++
  return { title: 'UID', least: length, of: (f) => f.finding_info.uid.slice(-length) }
}

/** What in the VM it is about: processes and modules of the evidence, without repeats. */
function subject(finding: DetectionFinding): string {
  const names = new Set<string>()
  for (const item of finding.evidences ?? []) {
    const name = nameOf(item)
    if (name !== '') names.add(name)
    if (names.size > 8) break
  }
  return [...names].join(', ')
}

function nameOf({ process, file, data }: OcsfEvidence): string {
  if (process?.name !== undefined) return process.pid === undefined ? process.name : `${process.name}[${process.pid}]`
  if (process?.pid !== undefined) return `pid ${process.pid}`
  const module = field(field(data, 'module'), 'name') ?? field(data, 'module')
  if (typeof module === 'string') return module
  return file?.name ?? ''
}

function field(data: Json | undefined, name: string): Json | undefined {
  if (typeof data !== 'object' || data === null || Array.isArray(data)) return undefined
  return Object.hasOwn(data, name) ? (data as { [name: string]: Json })[name] : undefined
}

/** Time of day if it was today, else the day; UTC. */
function time(at: number, now: number): string {
  if (!(at >= 0 && at <= 8.64e15)) return '?'
  const text = new Date(at).toISOString()
  const today = new Date(now).toISOString().slice(0, 10)
  return text.startsWith(today) ? `${text.slice(11, 19)}Z` : `${text.slice(0, 16).replace('T', ' ')}Z`
}

/** Those that a line of this width has room for at their least. */
function columnsFor(width: number, all: readonly Column[]): readonly Column[] {
  let columns = all
  const least = () => columns.reduce((sum, column) => sum + column.least, GAP * (columns.length - 1))
  for (let drop = 1; drop <= 3 && least() > width; drop++) columns = columns.filter((column) => column.drop !== drop)
  return columns
}

/** Widths as the content asks; where that is too much, the widest column gives way first, down to what it keeps. */
function fitWidths(columns: readonly Column[], rows: readonly (readonly string[])[], width: number): number[] {
  const widths = columns.map((column, i) => {
    return Math.max(column.title.length, ...rows.slice(0, 10_000).map((row) => displayWidth(row[i] as string)))
  })
  let over = widths.reduce((sum, w) => sum + w, 0) + GAP * (columns.length - 1) - width
  while (over > 0) {
    let widest = -1
    for (const [i, w] of widths.entries()) {
      if (w > (columns[i] as Column).least && (widest < 0 || w > (widths[widest] as number))) widest = i
    }
    if (widest < 0) break
    const second = Math.max(...widths.map((w, i) => (i === widest ? 0 : w)), (columns[widest] as Column).least)
    const cut = Math.max(1, Math.min(over, (widths[widest] as number) - second))
    widths[widest] = (widths[widest] as number) - cut
    over -= cut
  }
  return widths
}

function pad(text: string, width: number, right: boolean): string {
  const has = displayWidth(text)
  if (has <= width) return right ? ' '.repeat(width - has) + text : text + ' '.repeat(width - has)
  let cut = ''
  let used = 0
  for (const c of text) {
    const w = displayWidth(c)
    if (used + w > width - 1) break
    cut += c
    used += w
  }
  return `${cut}…${' '.repeat(width - used - 1)}`
}

/**
 * Terminal cells: two for the wide scripts (UAX #11, the blocks that are wide as a whole). A combining mark counts as one:
 * it takes none, but a hostile string may be all marks, and would never be cut.
 */
function displayWidth(text: string): number {
  if (/^[\x20-\x7e]*$/.test(text)) return text.length
  let width = 0
  for (const c of text) {
    const code = c.codePointAt(0) as number
    const wide =
      (code >= 0x1100 && code <= 0x115f) || (code >= 0x2e80 && code <= 0xa4cf) || (code >= 0xac00 && code <= 0xd7a3)
    const wider =
      (code >= 0xf900 && code <= 0xfaff) || (code >= 0xfe30 && code <= 0xfe6f) || (code >= 0xff00 && code <= 0xff60)
    width += wide || wider || (code >= 0x1f300 && code <= 0x3fffd) ? 2 : 1
  }
  return width
}
