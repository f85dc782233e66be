import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { check } from '../../scripts/check-arrows.mjs'

const root = path.resolve(import.meta.dirname, '../..')
const scratch = mkdtempSync(path.join(tmpdir(), 'arrows-'))
afterAll(() => rmSync(scratch, { recursive: true }))

function breachesOf(files: Record<string, string>): string[] {
  const checkout = mkdtempSync(path.join(scratch, 'checkout-'))
  mkdirSync(path.join(checkout, 'src'))
  mkdirSync(path.join(checkout, 'examples'))
  for (const [file, text] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(checkout, file)), { recursive: true })
    writeFileSync(path.join(checkout, file), text)
  }
  return check(checkout).breaches
}

describe('import directions', () => {
  it('hold in this checkout', () => {
    const result = check(root)
    expect(result.breaches).toEqual([])
    expect(result.imports).toBeGreaterThan(100)
  })

  it.each([
    ['src/service/a.ts', "import { x } from '../native/b.js'"],
    ['src/service/a.ts', "export { x } from '../broker/index.js'"],
    ['src/service/a.ts', "const x = await import('../broker/session.js')"],
    ['src/service/a.ts', "let x: import('../native/b.js').X"],
    ['src/vmi/a.ts', "import type { X } from '../capabilities/b.js'"],
    ['src/vmi/linux/a.ts', "import { x } from '../../cli/b.js'"],
    ['src/errors.ts', "import { x } from './vmi/b.js'"],
    ['src/native/a.ts', "import { x } from '../../test/b.js'"],
    ['src/vmi/a.ts', "import { x } from '@cloudapp/sdk'"],
    ['src/unheard-of/a.ts', "import { x } from '../errors.js'"],
    ['examples/ids/a.ts', "import { x } from '../../src/index.js'"],
    ['src/vmi/a.ts', "console.log('x')"],
    ['src/vmi/a.ts', "process.stderr.write('x')"],
  ])('%s: %s is refused', (file, text) => {
    expect(breachesOf({ [file]: `// line 1\n${text}\n` })).toEqual([expect.stringMatching(`^${file}:2: `)])
  })

  it.each([
    ['src/service/a.ts', "import { x } from '../broker/client.js'"],
    ['src/vmi/linux/a.ts', "import { x } from '../../native/b.js'"],
    ['src/native/a.ts', "import { x } from '../errors.js'"],
    ['src/cli/a.ts', "console.log('x')"],
    ['examples/ids/a.ts', "import { x } from '@cloudapp/sdk/client'"],
    ['src/vmi/a.ts', '// console.log of it all'],
  ])('%s: %s is let through', (file, text) => {
    expect(breachesOf({ [file]: `${text}\n` })).toEqual([])
  })
})
