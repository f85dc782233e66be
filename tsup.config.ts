import { readFileSync } from 'node:fs'
import { defineConfig, type Options } from 'tsup'

const manifest: { exports: Record<string, string | { default: string }> } = JSON.parse(
  readFileSync(new URL('package.json', import.meta.url), 'utf8'),
)

// Every subpath of package.json: dist/vmi/index.js is built from src/vmi/index.ts.
const subpaths = Object.values(manifest.exports).flatMap((target) =>
  typeof target === 'string' ? [] : [target.default.replace(/^\.\/dist\/(.*)\.js$/, '$1')],
)
const sources = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, `src/${name}.ts`]))

const common = { format: ['esm'], target: 'node20', platform: 'node', sourcemap: true } satisfies Options

export default defineConfig([
  {
    ...common,
    entry: sources([...subpaths, 'cli/main']),
    // Chunks are shared between the subpaths, so that ./client does not carry what only ./vmi needs.
    splitting: true,
  },
  {
    // The parser process may read one file only, its own program: everything it needs is in it.
    ...common,
    entry: { 'vmi/parser': 'src/vmi/linux/parser/main.ts' },
    splitting: false,
    noExternal: [/.*/],
  },
])
