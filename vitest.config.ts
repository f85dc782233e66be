import { availableParallelism } from 'node:os'
import { defineConfig } from 'vitest/config'

// What needs the built package: run after one build, in the 'package' project.
const built = ['test/package/**', 'test/cli/**', 'test/docs/**']

// Without VMs too, but seconds each: crashes, attacks to exhaustion, scale, whole processes talking. So that `unit` can be run at
// every turn; `npm test` runs both.
const long = [
  'test/broker/{broker,conformance,crash,hostile,events}.test.ts',
  'test/broker/audit/crash.test.ts',
  'test/broker/direct/leases.test.ts',
  'test/capabilities/{bounds,properties}.test.ts',
  'test/service/{conform,domain,scale,tenants,gateway}.test.ts',
  'test/testing/{integrity,lies}.test.ts',
  'test/transport/{tls,xen/vchan}.test.ts',
  'test/vmi/soak.test.ts',
  'test/vmi/linux/{attach,cache,parser-process}.test.ts',
  'test/vmi/sources/libvmi-bench.test.ts',
  'test/vmi/linux/integrity/{confirm,exhaust,hostile}.test.ts',
]

// What takes times: alone on the machine, whose two processors its own processes keep busy.
const timed = ['test/broker/fair.test.ts']

const xen = { fileParallelism: false, isolate: false, testTimeout: 900_000, hookTimeout: 900_000 }

export default defineConfig({
  resolve: { alias: { '@cloudapp/sdk': new URL('./src', import.meta.url).pathname } },
  test: {
    // The parser process runs a program of its own, also beside unbuilt sources.
    globalSetup: ['test/setup/parser.ts'],
    // vitest leaves one processor to itself, which of two is half.
    maxWorkers: availableParallelism(),
    projects: [
      {
        extends: true,
        test: {
          name: 'unit',
          include: ['test/**/*.test.ts'],
          exclude: ['test/rig/**', ...built, ...long, ...timed],
          testTimeout: 60_000,
        },
      },
      { extends: true, test: { name: 'long', include: long, testTimeout: 60_000 } },
      { extends: true, test: { name: 'timed', include: timed, fileParallelism: false, testTimeout: 60_000 } },
      {
        // Real VMs: one file after the other, generous limits (two cores, software emulation).
        extends: true,
        test: {
          name: 'rig',
          include: ['test/rig/*.test.ts'],
          fileParallelism: false,
          testTimeout: 600_000,
          hookTimeout: 600_000,
        },
      },
      {
        // A real Xen host and its guests: one after the other in one process, which keeps the host.
        extends: true,
        test: {
          name: 'xen',
          include: ['test/rig/xen/*.test.ts'],
          ...xen,
        },
      },
      {
        extends: true,
        test: {
          name: 'package',
          include: built.map((folder) => `${folder}/*.test.ts`),
          globalSetup: ['test/package/build.ts'],
          testTimeout: 300_000,
          hookTimeout: 300_000,
        },
      },
    ],
  },
})
