import { defineConfig } from 'vitest/config'

export default defineConfig({
  resolve: { alias: { '@cloudapp/sdk': new URL('./src', import.meta.url).pathname } },
  test: {
    projects: [
      {
        extends: true,
        test: { name: 'unit', include: ['test/**/*.test.ts'], exclude: ['test/rig/**', 'test/package/**'] },
      },
      {
        // Real VMs: one file after the other, generous limits (two cores, software emulation).
        extends: true,
        test: {
          name: 'rig',
          include: ['test/rig/**/*.test.ts'],
          fileParallelism: false,
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
      { extends: true, test: { name: 'package', include: ['test/package/**/*.test.ts'], testTimeout: 300_000 } },
    ],
  },
})
