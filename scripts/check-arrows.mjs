// Which folder of src may import which, and who may print. Run: npm run arrows. Fails with file:line for each breach.
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

/**
 * The arrows, in one place: each folder (or file) of src, and the folders it may import beside itself and {@link EVERYWHERE}.
 * The longest matching key counts. `*` is everything.
 */
export const ARROWS = {
  native: [],
  transport: ['native'],
  vmi: ['native'],
  host: ['native'],
  capabilities: ['vmi', 'transport'],
  testing: ['vmi', 'capabilities'],
  broker: ['capabilities', 'vmi', 'transport', 'host'],
  syscall: ['vmi', 'capabilities'],
  nested: ['vmi', 'capabilities'],
  network: ['vmi', 'capabilities'],
  storage: ['vmi', 'capabilities'],
  // Of the broker a service knows only its far end.
  service: ['vmi', 'capabilities', 'transport', 'syscall', 'nested', 'network', 'storage', 'broker/client.ts'],
  // It must load without any native code, which test/package proves on the built files.
  'client.ts': ['service', 'transport', 'capabilities'],
  'index.ts': ['*'],
  cli: ['vmi', 'capabilities', 'transport', 'broker', 'service', 'syscall', 'nested', 'network', 'storage', 'host'],
  // The broker's process is ours alone, down to its malloc.
  'cli/commands/broker.ts': ['native', 'broker'],
  // doctor reports on the native library itself.
  'cli/doctor': ['native', 'vmi', 'capabilities', 'transport', 'broker', 'service', 'host'],
}

/** May be imported by all. */
export const EVERYWHERE = ['errors.ts', 'options.ts', 'duration.ts', 'events.ts']

/** What the examples and the outside world may import of this package. */
const PUBLIC = /^@cloudapp\/sdk(\/[a-z]+)?$/

const inside = (path, folder) => path === folder || path.startsWith(`${folder}/`)

/** The key of ARROWS that governs a file of src. */
export function ruleOf(file) {
  return Object.keys(ARROWS)
    .filter((key) => inside(file, key))
    .sort((a, b) => b.length - a.length)[0]
}

/** Why `from` may not import `to` (both relative to src), or undefined if it may. */
export function breach(from, to) {
  const rule = ruleOf(from)
  if (EVERYWHERE.includes(from))
    return EVERYWHERE.includes(to) ? undefined : `${from} may import only ${EVERYWHERE.join(', ')}`
  if (rule === undefined) return `${from} is in no folder of the table in scripts/check-arrows.mjs`
  const own = from.includes('/') ? from.split('/')[0] : from
  const allowed = ARROWS[rule]
  if (allowed.includes('*') || EVERYWHERE.includes(to) || inside(to, own)) return undefined
  if (allowed.some((folder) => inside(to, folder))) return undefined
  return `${rule} may not import ${to.split('/')[0]} (it may: ${allowed.join(', ') || 'nothing'})`
}

function* files(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory() && entry.name !== 'node_modules') yield* files(path)
    else if (entry.isFile() && /\.m?ts$/.test(entry.name)) yield path
  }
}

/** Every module specifier of a file, with its line: imports, re-exports, import() and import types. */
function* specifiers(source) {
  const found = []
  const visit = (node) => {
    const literal =
      ts.isImportDeclaration(node) || ts.isExportDeclaration(node)
        ? node.moduleSpecifier
        : ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword
          ? node.arguments[0]
          : ts.isImportTypeNode(node) && ts.isLiteralTypeNode(node.argument)
            ? node.argument.literal
            : undefined
    if (literal && ts.isStringLiteralLike(literal)) found.push({ text: literal.text, at: literal.getStart(source) })
    ts.forEachChild(node, visit)
  }
  visit(source)
  yield* found
}

/** Every use of console, process.stdout and process.stderr. */
function* prints(source) {
  const found = []
  const visit = (node) => {
    if (ts.isPropertyAccessExpression(node) && ts.isIdentifier(node.expression)) {
      const [object, member] = [node.expression.text, node.name.text]
      if (object === 'console' || (object === 'process' && (member === 'stdout' || member === 'stderr'))) {
        found.push({ text: `${object}.${member}`, at: node.getStart(source) })
      }
    }
    ts.forEachChild(node, visit)
  }
  visit(source)
  yield* found
}

/** Checks a checkout; returns the breaches as `file:line: why`, and how much was looked at. */
export function check(root) {
  const breaches = []
  const counts = { files: 0, imports: 0 }
  const src = join(root, 'src')
  const look = (path, judge) => {
    const source = ts.createSourceFile(path, readFileSync(path, 'utf8'), ts.ScriptTarget.ES2022, true)
    const report = (at, why) => {
      const { line } = source.getLineAndCharacterOfPosition(at)
      breaches.push(`${relative(root, path)}:${line + 1}: ${why}`)
    }
    counts.files++
    for (const specifier of specifiers(source)) {
      counts.imports++
      const why = judge(specifier.text)
      if (why) report(specifier.at, why)
    }
    return { source, report }
  }
  for (const path of files(src)) {
    const file = relative(src, path).split(sep).join('/')
    const { source, report } = look(path, (text) => {
      if (PUBLIC.test(text)) return `src imports itself by relative paths, not as ${text}`
      if (!text.startsWith('.')) return undefined
      const to = relative(src, resolve(dirname(path), text))
        .split(sep)
        .join('/')
        .replace(/\.js$/, '.ts')
      return to.startsWith('..') ? `${text} leaves src` : breach(file, to)
    })
    if (!inside(file, 'cli')) {
      for (const print of prints(source)) report(print.at, `only src/cli prints, not ${print.text}`)
    }
  }
  for (const path of files(join(root, 'examples'))) {
    // The demo boots the VMs that the examples meet: it alone reaches into the rig.
    const isDemo = path.startsWith(join(root, 'examples', 'demo') + sep)
    look(path, (text) => {
      const to = resolve(dirname(path), text)
      if (isDemo && to.startsWith(join(root, 'test', 'rig', 'lib') + sep)) return undefined
      if (text.startsWith('.') && !to.startsWith(join(root, 'examples') + sep))
        return `examples use the public API, not ${text}`
      if (text.startsWith('@cloudapp/') && !PUBLIC.test(text)) return `${text} is not public`
      return undefined
    })
  }
  return { breaches, ...counts }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const result = check(fileURLToPath(new URL('..', import.meta.url)))
  for (const line of result.breaches) process.stderr.write(`${line}\n`)
  process.stdout.write(
    `${result.imports} imports in ${result.files} files, ${result.breaches.length} against the arrows\n`,
  )
  process.exitCode = result.breaches.length > 0 ? 1 : 0
}
