import fc from 'fast-check'
import {
  type AddressRange,
  ALL_RIGHTS,
  type Caveats,
  canonicalRanges,
  type MemoryScope,
  type Narrowing,
  type ProcessScope,
} from '../../src/capabilities/index.js'
import { NOW } from './rig.js'

/** Small spaces, so that overlaps, equal ends and gaps come up often. */
const address = fc.oneof(fc.bigInt({ min: 0n, max: 40n }), fc.bigInt({ min: 2n ** 64n - 20n, max: 2n ** 64n - 1n }))

export const ranges: fc.Arbitrary<AddressRange[]> = fc
  .array(fc.tuple(address, address), { minLength: 1, maxLength: 5 })
  .map((pairs) => canonicalRanges(pairs.map(([a, b]) => (a < b ? { first: a, last: b } : { first: b, last: a }))))

const memory: fc.Arbitrary<MemoryScope> = fc.record(
  { physical: ranges, kernel: ranges, process: ranges },
  { requiredKeys: [] },
)

const name = fc.constantFrom('nginx', 'sshd', 'worker')
const cgroup = fc.constantFrom('/', '/system.slice', '/system.slice/nginx.service', '/system.slicer', '/user.slice')

const process: fc.Arbitrary<ProcessScope> = fc.oneof(
  fc.record({ name }),
  fc.record({ cgroup }),
  fc.record({ name, cgroup }),
)

const processes = fc.uniqueArray(process, { maxLength: 4, selector: ({ name, cgroup }) => `${name} ${cgroup}` })

const count = fc.integer({ min: 0, max: 12 })

const caveats: fc.Arbitrary<Caveats> = fc.record(
  {
    notBefore: fc.integer({ min: NOW - 10, max: NOW + 5 }),
    expires: fc.integer({ min: NOW - 5, max: NOW + 10 }),
    transports: fc.uniqueArray(fc.constantFrom('unix', 'vchan', 'tls', 'process')),
    uses: count,
    outputBytes: count,
    bytesPerSecond: count,
    operationsPerSecond: count,
    pauseMsPerMinute: count,
    memory,
    processes,
    syscalls: fc.uniqueArray(fc.integer({ min: 0, max: 9 })),
  },
  { requiredKeys: [] },
)

export const rights = fc.uniqueArray(fc.constantFrom(...ALL_RIGHTS), { minLength: 1 })

/** Anything one can ask of `attenuateToken`, wider and narrower. */
export const narrowing: fc.Arbitrary<Narrowing> = fc
  .tuple(caveats, fc.option(rights, { nil: undefined }))
  .map(([some, words]) => (words === undefined ? some : { ...some, rights: words }))
