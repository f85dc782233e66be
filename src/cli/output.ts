import { stripVTControlCharacters } from 'node:util'
import { safeJson } from '../service/safe-json.js'
import type { Cell, Column, Output } from './command.js'

// Everything that moves a terminal's cursor, hides text or reorders it: control and format characters (with the
// bidirectional and zero-width ones), line and paragraph separators, lone surrogates.
const UNSAFE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu

/** Text from a guest or a peer, safe on a terminal: what is not printable becomes `\xNN` or `\u{…}`. */
export function printable(text: string): string {
  return text.replace(UNSAFE, (c) => {
    const code = c.codePointAt(0) ?? 0
    return code < 256 ? `\\x${code.toString(16).padStart(2, '0')}` : `\\u{${code.toString(16)}}`
  })
}

/** One JSON document: bigints as `0x…` strings, bytes as hex; control characters escaped also where JSON allows them bare. */
export function toJson(document: unknown): string {
  const text = JSON.stringify(document, replaceBigInt, 2) ?? 'null'
  return text.replace(UNSAFE, (c) => (c === '\n' ? c : escapeUtf16(c)))
}

/** The same on one line. */
export function toJsonLine(document: unknown): string {
  return (JSON.stringify(document, replaceBigInt) ?? 'null').replace(UNSAFE, escapeUtf16)
}

function replaceBigInt(_key: string, value: unknown): unknown {
  if (typeof value === 'bigint') return hex(value)
  if (value instanceof Uint8Array) return Buffer.from(value).toString('hex')
  return value
}

function escapeUtf16(text: string): string {
  let out = ''
  for (let i = 0; i < text.length; i++) out += `\\u${text.charCodeAt(i).toString(16).padStart(4, '0')}`
  return out
}

/** An address as the tool prints it. */
export function hex(value: bigint): string {
  return value < 0n ? `-0x${(-value).toString(16)}` : `0x${value.toString(16)}`
}

function cellText(cell: Cell): string {
  if (cell === undefined) return '-'
  if (typeof cell === 'bigint') return hex(cell)
  return printable(String(cell))
}

/** A table with aligned columns. */
export function formatTable(columns: readonly Column[], rows: readonly (readonly Cell[])[]): string {
  const texts = rows.map((row) => columns.map((_, i) => cellText(row[i])))
  const widths = columns.map((column, i) =>
    texts.reduce((width, row) => Math.max(width, row[i]?.length ?? 0), column.title.length),
  )
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => (columns[i]?.right ? cell.padStart(widths[i] ?? 0) : cell.padEnd(widths[i] ?? 0)))
      .join('  ')
      .trimEnd()
  return [line(columns.map((column) => column.title)), ...texts.map(line)].join('\n')
}

/** Classic hex dump: address, 16 bytes, printable ASCII. */
export function hexDump(start: bigint, bytes: Uint8Array): string {
  const lines: string[] = []
  for (let at = 0; at < bytes.length; at += 16) {
    const row = [...bytes.subarray(at, at + 16)]
    const pairs = row.map((byte) => byte.toString(16).padStart(2, '0'))
    const ascii = row.map((byte) => (byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : '.')).join('')
    const left = pairs.slice(0, 8).join(' ').padEnd(23)
    const right = pairs.slice(8).join(' ').padEnd(23)
    lines.push(`${(start + BigInt(at)).toString(16).padStart(16, '0')}  ${left}  ${right}  |${ascii}|`)
  }
  return lines.join('\n')
}

/** The output of a command run on this process's streams. */
export function processOutput(isJson: boolean): Output & { readonly written: boolean } {
  let written = false
  const put = (text: string) => process.stdout.write(`${text}\n`)
  return {
    isJson,
    get written() {
      return written
    },
    json(document) {
      if (written) throw new Error('a command printed two JSON documents')
      written = true
      put(toJson(document))
    },
    jsonLine(document) {
      written = true
      put(safeJson(document))
    },
    line(text = '') {
      if (!isJson) put(text)
    },
    item(document) {
      return new Promise((done, fail) => {
        process.stdout.write(`${toJsonLine(document)}\n`, (error) => (error ? fail(error) : done()))
      })
    },
    table(columns, rows) {
      if (!isJson) put(formatTable(columns, rows))
    },
    note(text) {
      process.stderr.write(`${stripVTControlCharacters(printable(text))}\n`)
    },
  }
}
