import { readFileSync } from 'node:fs'
import { defineConfig } from 'tsup'

const manifest: { exports: Record<string, string | { default: string }> } = JSON.parse(
  readFileSync(new URL('package.json', import.meta.url), 'utf8'),
)

// Every subpath of package.json: dist/vmi/index.js is built from src/vmi/index.ts.
const subpaths = Object.values(manifest.exports).flatMap((target) =>
  typeof target === 'string' ? [] : [target.default.replace(/^\.\/dist\/(.*)\.js$/, '$1')],
)

// Started as programs of their own.
const programs = ['cli/main']

export default defineConfig({
  entry: Object.fromEntries([...subpaths, ...programs].map((name) => [name, `src/${name}.ts`])),
  format: ['esm'],
  target: 'node20',
  platform: 'node',
  // Chunks are shared between the subpaths, so that ./client does not carry what only ./vmi needs.
  splitting: true,
  treeshake: true,
  dts: { entry: Object.fromEntries(subpaths.map((name) => [name, `src/${name}.ts`])) },
  sourcemap: true,
  clean: true,
})
