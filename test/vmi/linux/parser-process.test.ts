import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it, vi } from 'vitest'
import { ParserProcess } from '../../../src/vmi/linux/parser-process.js'
import { SymbolTable } from '../../../src/vmi/linux/symbols.js'
import { TEXT, tinyImage } from './image.js'

// Each attach starts a process.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const folder = mkdtempSync(join(tmpdir(), 'parser-'))
afterAll(() => rmSync(folder, { recursive: true }))

let scripts = 0
/** A parser program of its own; `frame(type, body)` writes a frame. */
function script(body: string): string {
  const path = join(folder, `${scripts++}.mjs`)
  writeFileSync(
    path,
    `import { readSync, writeSync } from 'node:fs'
const out = (b) => { for (let at = 0; at < b.length; ) at += writeSync(1, b, at) }
const frame = (type, body) => {
  const header = Buffer.alloc(5); header.writeUInt32LE(body.length + 1); header[4] = type
  out(header); out(body)
}
const json = (type, value) => frame(type, Buffer.from(JSON.stringify(value)))
const read = (at, length) => { const b = Buffer.alloc(8); b.writeUInt32LE(at); b.writeUInt32LE(length, 4); frame(17, b) }
const block = () => readSync(0, Buffer.alloc(1 << 20))
json(16, { uid: 65534 })
block()
${body}
`,
  )
  return path
}

const image = tinyImage('6.4')
const serve = async (at: number, length: number) => Uint8Array.from(image.bytes.subarray(at, at + length))
const run = (body: string, options: { deadline?: number; signal?: AbortSignal } = {}) =>
  ParserProcess.start({ script: script(body), ...options }).parse(image.job, serve)

describe('the parser process', () => {
  it('parses an image it is served', async () => {
    const served: number[] = []
    const answer = await ParserProcess.start().parse(image.job, (at, length) => {
      served.push(at)
      return serve(at, length)
    })
    expect(answer.image.release).toBe('6.9.9-test')
    expect(SymbolTable.open(answer.symbols, TEXT).get('init_task')).toBe(TEXT + 0x40_0000n)
    expect(served.length).toBeGreaterThan(0)
  })

  it('passes on which part is missing', async () => {
    const bytes = Buffer.alloc(image.bytes.length)
    const answer = ParserProcess.start().parse(image.job, async (at, length) => bytes.subarray(at, at + length))
    await expect(answer).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROFILE',
      message: expect.stringMatching(/^kernel profile: kallsyms_token_table: the token table/),
      details: { part: 'kallsyms_token_table' },
    })
  })

  // What the process may do is asked of itself: it answers in the release of the image.
  it('has no rights, no environment, and no descriptors but its pipes', async () => {
    const probe = (code: string) =>
      run(`
const facts = () => { ${code} }
let found
try { found = facts() } catch (error) { found = error.code }
json(21, { part: 'probe', message: String(found) })`)
    const says = async (code: string, message: RegExp) =>
      expect(probe(code)).rejects.toMatchObject({ message: expect.stringMatching(message) })
    await says('return Object.keys(process.env).length', /probe: 0$/)
    await says(`return process.permission?.has('fs.read', '/etc/passwd')`, /probe: false$/)
    await says(`return process.permission?.has('child')`, /probe: false$/)
    await says(`return process.getBuiltinModule('node:fs').readFileSync('/etc/passwd')`, /ERR_ACCESS_DENIED/)
  })

  it('gives up root', async () => {
    if (process.getuid?.() !== 0) return
    // The real program, held at its first read, so that it can be looked at from outside.
    let release = () => {}
    const held = new Promise<void>((resolve) => {
      release = resolve
    })
    let uids = ''
    const answer = ParserProcess.start().parse(image.job, async (at, length) => {
      if (uids === '') {
        uids = parserStatus()
        release()
      }
      return serve(at, length)
    })
    await held
    await answer
    expect(uids).toMatch(/^Uid:\s+65534\s+65534\s+65534\s+65534$/m)
    expect(uids).toMatch(/^Gid:\s+65534\s+65534\s+65534\s+65534$/m)
    expect(uids).toMatch(/^Groups:\s+65534\s*$/m)
    expect(uids).toMatch(/^CapEff:\s+0+$/m)
  })

  it.each([
    ['crashes', 'process.abort()', 'crashed'],
    ['exits', 'process.exit(0)', 'crashed'],
    ['throws', 'throw new Error("no")', 'crashed'],
    ['babbles', 'out(Buffer.from("hello, world, this is no frame at all"))', 'too large'],
    ['sends a frame nobody knows', 'frame(99, Buffer.alloc(4)); block()', 'garbage'],
    ['sends no JSON', 'frame(18, Buffer.from("{")); block()', 'garbage'],
    ['sends null', 'json(18, null); block()', 'garbage'],
    ['is done before it answered', 'frame(22, Buffer.alloc(0)); block()', 'garbage'],
    ['asks for bytes outside the image', 'read(0xfffffff0, 64); block()', 'garbage'],
    ['asks for too much at once', 'read(0, 64 << 20); block()', 'garbage'],
    ['asks without end', 'for (;;) { read(0, 16); block() }', 'too many requests'],
    ['asks for more than the image in all', 'for (;;) { read(0, 4 << 20); block() }', 'too many requests'],
    [
      'announces an endless answer',
      'const h = Buffer.alloc(5); h.writeUInt32LE(0xffffffff); h[4] = 19; out(h); block()',
      'too large',
    ],
    ['sends endless JSON', 'json(18, "x".repeat(2 << 20)); block()', 'too large'],
  ])('that %s is a profile error', async (_, body, reason) => {
    await expect(run(body)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_PROFILE', details: { reason } })
  })

  it('that never answers is stopped at the deadline', async () => {
    await expect(run('for (;;) {}', { deadline: 300 })).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_PROFILE',
      details: { reason: 'timeout' },
    })
  })

  it('is stopped by the signal', async () => {
    const abort = new AbortController()
    const answer = run('json(21, {}); for (;;) {}', { signal: AbortSignal.abort() })
    await expect(answer).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
    const later = ParserProcess.start({ signal: abort.signal }).parse(image.job, async () => {
      abort.abort()
      return new Uint8Array(1)
    })
    await expect(later).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
  })

  it('that keeps root is refused', async () => {
    if (process.getuid?.() !== 0) return
    const path = join(folder, 'root.mjs')
    writeFileSync(
      path,
      `import { writeSync } from 'node:fs'
const body = Buffer.from('{"uid":0}'); const h = Buffer.alloc(5); h.writeUInt32LE(body.length + 1); h[4] = 16
writeSync(1, Buffer.concat([h, body])); setInterval(() => {}, 1000)`,
    )
    await expect(ParserProcess.start({ script: path }).parse(image.job, serve)).rejects.toMatchObject({
      details: { reason: 'privileged' },
    })
  })
})

/** /proc/PID/status of the parser this process runs. */
function parserStatus(): string {
  const fs = process.getBuiltinModule('node:fs')
  for (const pid of readdirSync('/proc')) {
    if (!/^\d+$/.test(pid)) continue
    let command: string
    let status: string
    try {
      command = fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      status = fs.readFileSync(`/proc/${pid}/status`, 'utf8')
    } catch {
      // It ended meanwhile.
      continue
    }
    if (command.includes('parser.mjs') && status.includes(`PPid:\t${process.pid}\n`)) return status
  }
  return ''
}
