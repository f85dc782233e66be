import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import ts from 'typescript'
import { describe, expect, it } from 'vitest'
import { type Block, commentBlocks, documentBlocks, folder, root } from './blocks.js'

const blocks = [...documentBlocks(), ...commentBlocks()]

const fileOf = (index: number) => path.join(folder, `block-${index}.ts`)

function compile(files: readonly string[]): ts.Diagnostic[] {
  const config = ts.readConfigFile(path.join(root, 'tsconfig.json'), ts.sys.readFile)
  const { options } = ts.parseJsonConfigFileContent(config.config, ts.sys, root)
  const program = ts.createProgram([...files], {
    ...options,
    // A block may name something only to show it, and knows how long its arrays are.
    noUnusedLocals: false,
    noUncheckedIndexedAccess: false,
  })
  // Only these files: the sources have a check of their own.
  return files.flatMap((file) => [...ts.getPreEmitDiagnostics(program, program.getSourceFile(file))])
}

function report(diagnostic: ts.Diagnostic): string {
  const file = diagnostic.file
  const index = Number(/block-(\d+)\.ts$/.exec(file?.fileName ?? '')?.[1])
  const line = file?.getLineAndCharacterOfPosition(diagnostic.start ?? 0).line ?? 0
  return `${blocks[index]?.where} line ${line + 1}: ${ts.flattenDiagnosticMessageText(diagnostic.messageText, ' ')}`
}

describe('the code in the documents', () => {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  for (const [index, block] of blocks.entries()) writeFileSync(fileOf(index), `${block.code}\nexport {}\n`)

  it('is there', () => {
    expect(blocks.map((block) => block.where)).toContainEqual(expect.stringMatching(/^README\.md:/))
  })

  it('compiles against the sources', () => {
    expect(compile(blocks.map((_, index) => fileOf(index))).map(report)).toEqual([])
  })

  const running = [...blocks.entries()].filter(([, block]: [number, Block]) => block.runs)
  it.runIf(running.length > 0).each(running.map(([index, { where }]) => ({ index, where })))(
    '$where runs',
    async ({ index }) => {
      await import(/* @vite-ignore */ fileOf(index))
    },
  )

  it('would be refused if it were wrong', () => {
    const wrong = path.join(folder, 'block-0.ts')
    writeFileSync(wrong, "import { nothingOfThatName } from '@cloudapp/sdk'\nnothingOfThatName()\n")
    expect(compile([wrong]).map((diagnostic) => diagnostic.code)).toEqual([2305])
  })
})
