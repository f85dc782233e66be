import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import ts from 'typescript'

export const root = path.resolve(import.meta.dirname, '../..')

/** Where blocks are written to: inside the package, so that '@cloudapp/sdk' is the package itself, as a user has it. */
export const folder = path.join(root, 'build', 'doc-blocks')

/** One piece of code that the documents show. */
export interface Block {
  /** `file:line` of its first line. */
  readonly where: string
  /** True for a block marked `ts run` or `sh run`: it is executed. */
  readonly runs: boolean
  readonly code: string
}

function* filesUnder(folder: string, ending: string): Generator<string> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const file = path.join(folder, entry.name)
    if (entry.isDirectory() && entry.name !== 'node_modules') yield* filesUnder(file, ending)
    else if (entry.isFile() && entry.name.endsWith(ending)) yield file
  }
}

/** Fenced blocks of these languages, `ts` or `ts run`. `strip` removes what precedes each line in the file, such as a comment's star. */
function* fenced(
  text: string,
  file: string,
  firstLine: number,
  strip: RegExp,
  languages: readonly string[] = ['ts', 'typescript'],
): Generator<Block> {
  let open: { line: number; runs: boolean; code: string[] } | undefined
  for (const [index, raw] of text.split('\n').entries()) {
    const line = raw.replace(strip, '')
    const fence = /^\s*```(.*)$/.exec(line)
    if (!fence) {
      open?.code.push(line)
    } else if (open) {
      yield { where: `${path.relative(root, file)}:${open.line}`, runs: open.runs, code: open.code.join('\n') }
      open = undefined
    } else {
      const [language, mark] = (fence[1] ?? '').trim().split(/\s+/)
      if (languages.includes(language ?? '')) {
        open = { line: firstLine + index + 1, runs: mark === 'run', code: [] }
      } else {
        open = undefined
      }
    }
  }
}

/** Every marked block of the documents. */
export function documentBlocks(languages?: readonly string[]): Block[] {
  const files = [
    ...readdirSync(root)
      .filter((name) => name.endsWith('.md'))
      .map((name) => path.join(root, name)),
    ...['docs', 'examples', 'packages'].flatMap((folder) => [...filesUnder(path.join(root, folder), '.md')]),
  ]
  return files.flatMap((file) => [...fenced(readFileSync(file, 'utf8'), file, 1, /^(?:> ?)?/, languages)])
}

/** Every block in a TSDoc comment of src. Names its file exports need no import in it. */
export function commentBlocks(): Block[] {
  const blocks: Block[] = []
  for (const file of filesUnder(path.join(root, 'src'), '.ts')) {
    const text = readFileSync(file, 'utf8')
    if (!text.includes('```ts')) continue
    for (const match of text.matchAll(/\/\*\*[\s\S]*?\*\//g)) {
      const line = text.slice(0, match.index).split('\n').length
      for (const block of fenced(match[0], file, line, /^\s*(?:\/\*\*|\* ?)/)) {
        blocks.push({ ...block, code: `${importsFor(block.code, file, text)}${block.code}` })
      }
    }
  }
  return blocks
}

/** Imports for what a block in a comment uses: what its file exports or itself imports, and `assert`. */
function importsFor(code: string, file: string, text: string): string {
  const source = ts.createSourceFile(file, text, ts.ScriptTarget.ES2022, true)
  const origin = new Map<string, string>([['assert', 'node:assert/strict']])
  for (const statement of source.statements) {
    if (ts.isImportDeclaration(statement) && ts.isStringLiteral(statement.moduleSpecifier)) {
      const bindings = statement.importClause?.namedBindings
      if (!bindings || !ts.isNamedImports(bindings)) continue
      const from = statement.moduleSpecifier.text
      for (const { name } of bindings.elements)
        origin.set(name.text, from.startsWith('.') ? sourceModule(file, from) : from)
    } else {
      for (const name of exportedNames(statement, source))
        origin.set(name, sourceModule(file, `./${path.basename(file)}`))
    }
  }
  const own = [...code.matchAll(/import\s+(?:type\s+)?(?:\{([^}]*)\}|(\w+))/g)].flatMap(([, names, one]) =>
    one ? [one] : (names?.match(/\w+/g) ?? []),
  )
  return [...origin]
    .filter(([name]) => new RegExp(`(?<![.\\w'])${name}\\b`).test(code) && !own.includes(name))
    .map(([name, from]) =>
      name === 'assert' ? `import assert from '${from}'; ` : `import { ${name} } from '${from}'; `,
    )
    .join('')
}

/** How a block, which lies in {@link folder}, names a module of the sources. */
function sourceModule(file: string, specifier: string): string {
  return path.relative(folder, path.resolve(path.dirname(file), specifier)).replace(/\.ts$/, '.js')
}

function exportedNames(statement: ts.Statement, source: ts.SourceFile): string[] {
  const modifiers = ts.canHaveModifiers(statement) ? ts.getModifiers(statement) : undefined
  if (!modifiers?.some((modifier) => modifier.kind === ts.SyntaxKind.ExportKeyword)) return []
  if (ts.isVariableStatement(statement)) {
    return statement.declarationList.declarations.map((declaration) => declaration.name.getText(source))
  }
  const { name } = statement as { name?: ts.Node }
  return name ? [name.getText(source)] : []
}
