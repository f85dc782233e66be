import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach } from 'vitest'
import { AuditLog, type AuditLogOptions } from '../../../src/broker/audit/index.js'
import { KeyPair } from '../../../src/capabilities/index.js'

export const key = KeyPair.generate()

const folders: string[] = []

/** A folder that is gone after the test. */
export async function folder(): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'cloudapp-audit-'))
  folders.push(path)
  return path
}

afterEach(async () => {
  for (const path of folders.splice(0)) await rm(path, { recursive: true, force: true })
})

export async function openLog(path: string, more: Partial<AuditLogOptions> = {}): Promise<AuditLog> {
  return AuditLog.open({ path, key, reserveBytes: 16 * 1024, headMs: 3_600_000, ...more })
}

/** A closed log with `count` records beside the log's own. */
export async function filledLog(count: number, more: Partial<AuditLogOptions> = {}) {
  const path = join(await folder(), 'audit.log')
  const log = await openLog(path, more)
  for (let i = 0; i < count; i++) await log.append({ action: 'test.note', outcome: 'allowed', details: { i } })
  const head = await log.close()
  return { path, head }
}

export async function lines(path: string): Promise<string[]> {
  return (await readFile(path, 'utf8')).split('\n').slice(0, -1)
}

export async function putLines(path: string, list: readonly string[]): Promise<void> {
  await writeFile(path, list.map((line) => `${line}\n`).join(''))
}
