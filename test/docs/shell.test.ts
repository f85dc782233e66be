import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import { documentBlocks, root } from './blocks.js'

const blocks = documentBlocks(['sh']).filter(({ runs }) => runs)

/** Runs commands in a folder of their own, with the package installed there and `cloudapp` on the PATH. */
async function shell(code: string): Promise<{ status: number | null; output: string }> {
  const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-shell-'))
  const bin = path.join(folder, 'node_modules', '.bin')
  mkdirSync(bin, { recursive: true })
  mkdirSync(path.join(folder, 'node_modules', '@cloudapp'))
  symlinkSync(root, path.join(folder, 'node_modules', '@cloudapp', 'sdk'))
  const main = path.join(root, 'dist/cli/main.js')
  writeFileSync(path.join(bin, 'cloudapp'), `#!/bin/sh\nexec '${process.execPath}' '${main}' "$@"\n`, { mode: 0o755 })
  const env = {
    ...process.env,
    PATH: [bin, path.dirname(process.execPath), process.env.PATH].join(':'),
    CLOUDAPP_CACHE: path.join(folder, 'cache'),
  }
  // A group of its own: what the commands leave running ends with them.
  const child = spawn('bash', ['-euo', 'pipefail', '-c', code], { cwd: folder, env, detached: true })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  const status = await new Promise<number | null>((resolve) => child.once('exit', resolve))
  try {
    process.kill(-(child.pid ?? 0), 'SIGKILL')
  } catch {
    // Nothing was left.
  }
  rmSync(folder, { recursive: true, force: true })
  return { status, output }
}

describe('the commands in the documents', () => {
  it('are there', () => {
    expect(blocks.map(({ where }) => where)).toContainEqual(expect.stringMatching(/^README\.md:/))
  })

  it.each(blocks)('$where runs', async ({ code }) => {
    const { status, output } = await shell(code)
    expect(status, output).toBe(0)
    // What a comment says is printed, is printed.
    const promised = [...code.matchAll(/# prints: (.+)$/gm)].map(([, text = '']) => text)
    expect(
      promised.filter((text) => !output.includes(text)),
      output,
    ).toEqual([])
  })

  it('would be refused if they were wrong', async () => {
    expect((await shell('cloudapp vm ad web-1\ntrue')).status).toBe(2)
  })
})
