import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { expect, test } from 'vitest'

const root = path.resolve(import.meta.dirname, '../..')

const SUITES = `
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
describe('unready', () => {
  beforeAll(() => { throw new Error('no guest\\n' + 'console\\n'.repeat(99) + 'panic') })
  test('one', () => {})
})
test('wrong', () => expect(1).toBe(2))
test('right', () => {})
test.skip('left out', () => {})
`

test('the closing lines of npm test say why what failed did, also in a hook', () => {
  mkdirSync(path.join(root, 'build'), { recursive: true })
  const folder = mkdtempSync(path.join(root, 'build', 'failures-'))
  try {
    const counted = path.join(folder, 'counts.json')
    // Its own, so that the project's is not looked for.
    writeFileSync(path.join(folder, 'vitest.config.mjs'), 'export default {}')
    writeFileSync(path.join(folder, 'suites.test.mjs'), SUITES)
    const vitest = path.join(root, 'node_modules/vitest/vitest.mjs')
    const reporter = path.join(root, 'scripts/test/vitest-counts.mjs')
    const args = [vitest, 'run', '--root', folder, `--reporter=${reporter}`]
    expect(() => execFileSync(process.execPath, args, { env: { ...process.env, COUNTS_FILE: counted } })).toThrow()
    const { passed, failed, skipped } = JSON.parse(readFileSync(counted, 'utf8'))
    expect(passed).toEqual(['suites.test.mjs > right'])
    expect(failed).toEqual([
      {
        name: 'suites.test.mjs > unready > one',
        why: expect.stringMatching(/^a hook failed: no guest\n[\s\S]*\npanic\nat /),
      },
      { name: 'suites.test.mjs > wrong', why: expect.stringMatching(/^expected 1 to be 2[\s\S]*suites.test.mjs:7:/) },
    ])
    expect(failed[0].why.split('\n').length).toBeLessThan(40)
    expect(skipped).toEqual([{ name: 'suites.test.mjs > left out', why: 'skipped in the test file' }])
  } finally {
    rmSync(folder, { recursive: true })
  }
})
