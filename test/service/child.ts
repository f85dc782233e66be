import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { later } from './support.js'

/** Starts `file` (TypeScript beside this one) as a process of its own; killed and removed after the test. */
export async function startChild(
  file: string,
  ...args: string[]
): Promise<ChildProcess & { stdout: NodeJS.ReadableStream }> {
  // Under node_modules, so that the bundle finds the packages it leaves out.
  const cache = fileURLToPath(new URL('../../node_modules/.cache/cloudapp-test', import.meta.url))
  mkdirSync(cache, { recursive: true })
  const folder = mkdtempSync(join(cache, 'child-'))
  later(() => rmSync(folder, { recursive: true, force: true }))
  const outfile = join(folder, file.replace(/\.ts$/, '.mjs'))
  await build({
    entryPoints: [fileURLToPath(new URL(file, import.meta.url))],
    outfile,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    packages: 'external',
    logLevel: 'silent',
  })
  const child = spawn(process.execPath, [outfile, ...args], { stdio: ['pipe', 'pipe', 'inherit'] })
  later(() => child.kill('SIGKILL'))
  return child as ChildProcess & { stdout: NodeJS.ReadableStream }
}
