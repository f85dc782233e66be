// Lets plain Node run the project's TypeScript: node --import ./scripts/ts.mjs FILE.ts
// (Node 20 does not strip types itself.) Types are removed by esbuild, which is here with tsup; nothing is checked.
import { register } from 'node:module'

register('./ts-hooks.mjs', import.meta.url)
