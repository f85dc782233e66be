import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { describe, expect, it } from 'vitest'

const root = path.resolve(import.meta.dirname, '../..')

/** Files git knows or would add, that are text. */
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '-z'], { cwd: root })
  .toString('utf8')
  .split('\0')
  .filter((file) => file !== '' && existsSync(path.join(root, file)) && statSync(path.join(root, file)).isFile())
  .map((file) => ({ file, text: readFileSync(path.join(root, file), 'latin1') }))
  .filter(({ text }) => !text.includes('\0'))

function linesWith(pattern: RegExp, among = files): string[] {
  return among.flatMap(({ file, text }) =>
    text
      .split('\n')
      .flatMap((line, i) => (pattern.test(line) ? [`${file}:${i + 1}: ${line.trim().slice(0, 160)}`] : [])),
  )
}

describe('the files of this repository', () => {
  it('are found', () => {
    expect(files.length).toBeGreaterThan(100)
  })

  it('name no folder of the machine they were written on', () => {
    // The checkout's own path, wherever that is, and homes of people.
    const checkout = root.length > 4 ? [root.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')] : []
    const folders = new RegExp([...checkout, '/home/[a-z]', '/Users/[A-Za-z]'].join('|'))
    expect(
      linesWith(
        folders,
        files.filter(({ file }) => file !== 'test/arch/files.test.ts'),
      ),
    ).toEqual([])
  })

  it('lock every package without naming a registry', () => {
    const lock = files.filter(({ file }) => file === 'package-lock.json')
    expect(lock).toHaveLength(1)
    expect(linesWith(/"resolved": "(?!packages\/)/, lock)).toEqual([])
    expect(linesWith(/registry\./, lock)).toEqual([])
  })

  it('leave nothing for later', () => {
    const code = files.filter(({ file }) => /^(src|native|test|scripts|examples|bench)\/.*\.(ts|mjs|c|h)$/.test(file))
    const unfinished = new RegExp(['TO' + 'DO', 'FIX' + 'ME', 'X' + 'XX'].map((word) => `\\b${word}\\b`).join('|'))
    expect(linesWith(unfinished, code)).toEqual([])
  })

  it('pin every dependency exactly', () => {
    const manifest = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
    const kinds = ['dependencies', 'devDependencies', 'optionalDependencies', 'peerDependencies'] as const
    const loose = kinds.flatMap((kind) =>
      Object.entries<string>(manifest[kind]).filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version)),
    )
    expect(loose).toEqual([])
  })
})
