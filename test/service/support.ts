import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, vi } from 'vitest'
import { Findings } from '../../src/service/findings.js'
import { FindingStore } from '../../src/service/store/store.js'

export const PRODUCT = { name: 'Test IDS', vendor_name: 'Acme', uid: 'ids', version: '1.0.0' }
export const WEB = { name: 'web-1', uuid: '11111111-1111-4111-8111-111111111111', bootNonce: 'a'.repeat(32) }
export const DB = { name: 'db-1', uuid: '22222222-2222-4222-8222-222222222222', bootNonce: 'b'.repeat(32) }

// Generous: what is tested is never how long it takes, and the machine may be busy.
vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 })

const undo: (() => unknown)[] = []

afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step()
})

/** Runs `step` after the test, last registered first. */
export function later(step: () => unknown): void {
  undo.push(step)
}

export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'cloudapp-service-'))
  later(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

export function openStore(path = join(temporaryFolder(), 'findings.db'), now?: () => number): FindingStore {
  const store = FindingStore.open({ path, product: PRODUCT, ...(now && { now }) })
  later(() => store.close())
  return store
}

export const KEEP = { maxAgeMs: 90 * 86_400_000, maxCount: 1_000_000, maxTombstones: 1_000_000, maxArtifactBytes: 1e9 }

export function openFindings(store = openStore(), retention = KEEP): Findings {
  const findings = new Findings(store, retention, () => {})
  later(() => findings.shutdown())
  return findings
}
