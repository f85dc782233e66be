import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

/** Builds the parser process's program to where the unbuilt sources look for it (src/vmi/linux/parser-process.ts). */
export default async function setup(): Promise<void> {
  const path = (name: string) => fileURLToPath(new URL(`../../${name}`, import.meta.url))
  await build({
    entryPoints: [path('src/vmi/linux/parser/main.ts')],
    outfile: path('.cache/vmi/parser.mjs'),
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    logLevel: 'error',
  })
}
