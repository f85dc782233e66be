import { existsSync, readFileSync } from 'node:fs'

/** The version in this package's package.json, found upwards from this file (`src/cli` and `dist` lie at different depths). */
export function version(): string {
  let folder = new URL('.', import.meta.url)
  while (!existsSync(new URL('package.json', folder))) {
    const parent = new URL('..', folder)
    if (parent.href === folder.href) return 'unknown'
    folder = parent
  }
  const parsed: unknown = JSON.parse(readFileSync(new URL('package.json', folder), 'utf8'))
  return typeof parsed === 'object' && parsed !== null && 'version' in parsed ? String(parsed.version) : 'unknown'
}
