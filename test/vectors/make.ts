import { encode } from 'cborg'
import { encodeBlock, nextLink, ROOT_LINK, type SignedBlock, signedBytes } from '../../src/capabilities/block.js'
import {
  bindingHash,
  type Caveats,
  type Grant,
  inspectToken,
  KeyPair,
  keyId,
  type Narrowing,
  publicKeyBytes,
  tokenToText,
} from '../../src/capabilities/index.js'
import { encodeToken, tokenHash } from '../../src/capabilities/token.js'

/** Seeds are one byte 32 times over: 01 the owner, 02 the broker, 03 to 05 holders one after the other. */
const seeds = { owner: 1, broker: 2, first: 3, second: 4, third: 5 } as const
const keys = Object.fromEntries(
  Object.entries(seeds).map(([name, byte]) => [name, KeyPair.fromSeed(new Uint8Array(32).fill(byte))]),
) as Record<keyof typeof seeds, KeyPair>

const vm = { uuid: '3f2b8c1e-0d5a-4c57-9f6e-8a1b2c3d4e5f', bootNonce: '00112233445566778899aabbccddeeff' }
const NOW = 1_795_000_000_000
const root: Narrowing = {
  rights: ['vm.info', 'memory.read', 'vcpu.read'],
  audience: keys.broker.publicKey,
  notBefore: NOW - 60_000,
  expires: NOW + 600_000,
}
const everything: Caveats = {
  transports: ['unix', 'vchan'],
  uses: 10,
  outputBytes: 1_048_576,
  bytesPerSecond: 1_000_000,
  operationsPerSecond: 1000,
  pauseMsPerMinute: 100,
  memory: {
    physical: [
      { first: 0n, last: 0xffffn },
      { first: 0x1_0000_0000n, last: 0x1_0000_0fffn },
    ],
    kernel: [{ first: 0xffff_8000_0000_0000n, last: 0xffff_ffff_ffff_ffffn }],
    process: [{ first: 0x40_0000n, last: 0x7fff_ffff_ffffn }],
  },
  processes: [{ cgroup: '/system.slice' }, { name: 'nginx' }, { name: 'sshd', cgroup: '/system.slice/ssh.service' }],
  syscalls: [0, 1, 59, 322],
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex')
const blockId = (n: number) => `${n}`.padStart(32, '0')

interface Step {
  signer: KeyPair
  holder: KeyPair
  narrowing: Narrowing
  /** Replaces the encoded payload. */
  payload?: Uint8Array
}

/** A chain as its steps say, whether it is a good one or not. Block ids count from 1. */
function chain(...steps: Step[]) {
  let link: Uint8Array = ROOT_LINK
  const blocks = steps.map(({ signer, holder, narrowing, payload }, i) => {
    const content = { id: blockId(i + 1), holder: holder.publicKey, narrowing }
    const plain = payload ?? encodeBlock(i === 0 ? { ...content, issuer: signer.publicKey, vm } : content)
    const message = signedBytes(link, plain)
    const block: SignedBlock = { payload: plain, signature: signer.sign(message) }
    const about = { link: hex(link), payload: hex(plain), signed: hex(message), signature: hex(block.signature) }
    link = nextLink(link, block)
    return { block, about }
  })
  return { blocks: blocks.map(({ block }) => block), about: blocks.map(({ about }) => about) }
}

const step = (signer: KeyPair, holder: KeyPair, narrowing: Narrowing = {}): Step => ({ signer, holder, narrowing })
const rootStep = (more: Narrowing = {}) => step(keys.owner, keys.first, { ...root, ...more })
const twoMore = [
  step(keys.first, keys.second, { rights: ['memory.read'], uses: 5 }),
  step(keys.second, keys.third, { uses: 3, processes: [{ name: 'nginx', cgroup: '/web' }], syscalls: [1] }),
]

const GOOD: [string, Step[]][] = [
  ['a root block with what it must have', [rootStep()]],
  ['a root block with every caveat', [rootStep(everything)]],
  ['a root block that names processes and no memory', [rootStep({ processes: [{ name: 'nginx' }] })]],
  ['two holders later', [rootStep(), ...twoMore]],
  ['a block that says nothing', [rootStep(everything), step(keys.first, keys.first)]],
  ['a block that takes everything away', [rootStep(), step(keys.first, keys.first, { rights: [], memory: {} })]],
  [
    'narrowed in every dimension',
    [
      rootStep(everything),
      step(keys.first, keys.second, {
        rights: ['vm.info'],
        notBefore: NOW,
        expires: NOW + 1000,
        audience: keys.broker.publicKey,
        transports: ['unix'],
        ...{ uses: 1, outputBytes: 0, bytesPerSecond: 1, operationsPerSecond: 1, pauseMsPerMinute: 0 },
        memory: { kernel: [{ first: 0xffff_ffff_8000_0000n, last: 0xffff_ffff_ffff_ffffn }] },
        processes: [{ name: 'nginx', cgroup: '/system.slice/nginx.service' }],
        syscalls: [59],
      }),
    ],
  ],
]

/** Valid chains, block by block. */
export function validVectors() {
  return {
    about:
      'Chains that verify. All numbers in hexadecimal strings are big-endian; times are milliseconds since 1970 UTC.',
    keys: Object.fromEntries(
      Object.entries(keys).map(([name, pair]) => {
        const raw = publicKeyBytes(pair.publicKey)
        return [
          name,
          {
            seed: hex(new Uint8Array(32).fill(seeds[name as keyof typeof seeds])),
            raw: hex(raw),
            text: pair.publicKey,
            id: keyId(pair.publicKey),
          },
        ]
      }),
    ),
    register: { uuid: vm.uuid, owner: keys.owner.publicKey, bootNonce: vm.bootNonce },
    broker: keys.broker.publicKey,
    now: NOW,
    transport: 'unix',
    vectors: GOOD.map(([name, steps]) => {
      const { blocks, about } = chain(...steps)
      const token = encodeToken(blocks)
      const { grant, holder } = inspectToken(token)
      return {
        name,
        token: hex(token),
        text: tokenToText(token),
        hash: hex(tokenHash(token)),
        holder,
        blocks: about,
        grant: plain(grant),
      }
    }),
  }
}

const good = () => chain(rootStep(), ...twoMore).blocks as [SignedBlock, SignedBlock, SignedBlock]
const widening = (outer: Narrowing, inner: Narrowing) =>
  encodeToken(chain(rootStep(outer), step(keys.first, keys.first, inner)).blocks)
const payloadOf = (entries: [number, unknown][]) =>
  encode(
    new Map<number, unknown>([
      [1, Buffer.from(blockId(2), 'hex')],
      [2, publicKeyBytes(keys.first.publicKey)],
      ...entries,
    ]),
  )
const withPayload = (payload: Uint8Array) =>
  encodeToken(chain(rootStep(), { ...step(keys.first, keys.first), payload }).blocks)
const range = (first: bigint, last: bigint) => [{ first, last }]

/** Changes to how a good vector is verified, and the fault they bring. */
const PLACES = [
  ['another broker', { broker: keys.first.publicKey }, 'ERR_CLOUDAPP_TOKEN', 'audience'],
  ['another owner', { owner: keys.first.publicKey }, 'ERR_CLOUDAPP_TOKEN', 'owner'],
  ['a later boot', { bootNonce: 'ff'.repeat(16) }, 'ERR_CLOUDAPP_TOKEN', 'vm'],
  ['a VM that is not here', { owner: null }, 'ERR_CLOUDAPP_TOKEN', 'vm'],
  ['the moment it ends', { now: NOW + 600_000 }, 'ERR_CLOUDAPP_EXPIRED', null],
  ['the moment before it starts', { now: NOW - 60_001 }, 'ERR_CLOUDAPP_TOKEN', 'not-yet-valid'],
  ['a revoked root block', { revoked: [blockId(1)] }, 'ERR_CLOUDAPP_REVOKED', null],
  ['a revoked last block', { revoked: [blockId(3)] }, 'ERR_CLOUDAPP_REVOKED', null],
] as const

function bad(): [string, Uint8Array, string][] {
  const [a, b, c] = good()
  const other = chain(rootStep({ uses: 100 }), ...twoMore).blocks as [SignedBlock, SignedBlock, SignedBlock]
  const token = Buffer.from(encodeToken([a, b, c]))
  const flipped = Buffer.from(token)
  flipped[token.length - 1] = (token[token.length - 1] as number) ^ 1
  const stranger = chain({ ...rootStep(), signer: keys.first })
  return [
    ['a bit of the last signature flipped', flipped, 'signature'],
    ['the block in the middle dropped', encodeToken([a, c]), 'signature'],
    ['the root dropped', encodeToken([b, c]), 'malformed'],
    ['a root from another chain', encodeToken([other[0], b, c]), 'signature'],
    ['a block twice', encodeToken([a, b, b]), 'malformed'],
    [
      'appended by somebody who is not the holder',
      encodeToken(chain(rootStep(), step(keys.third, keys.third)).blocks),
      'signature',
    ],
    ['a root by another key', encodeToken(stranger.blocks), 'owner'],
    ['no blocks', encode([1]), 'malformed'],
    ['another version', encode([2, [a.payload, a.signature]]), 'malformed'],
    ['a byte after the end', Buffer.concat([token, Buffer.alloc(1)]), 'malformed'],
    ['cut off', token.subarray(0, -1), 'malformed'],
    ['17 blocks', encodeToken(Array(17).fill(a)), 'malformed'],
    [
      'an outer array of indefinite length',
      Buffer.concat([Buffer.from('9f', 'hex'), token.subarray(1), Buffer.from('ff', 'hex')]),
      'malformed',
    ],
    [
      'the version in two bytes',
      Buffer.concat([token.subarray(0, 1), Buffer.from('1801', 'hex'), token.subarray(2)]),
      'malformed',
    ],
    ['an unknown caveat', withPayload(payloadOf([[4, new Map([[13, 1]])]])), 'malformed'],
    ['an unknown right', withPayload(payloadOf([[3, [15]]])), 'malformed'],
    ['rights out of order', withPayload(payloadOf([[3, [4, 1]]])), 'malformed'],
    ['an unknown entry', withPayload(payloadOf([[7, 1]])), 'malformed'],
    ['a VM in an appended block', withPayload(payloadOf([[6, [Buffer.alloc(16), Buffer.alloc(16)]]])), 'malformed'],
    ['an empty map of caveats', withPayload(payloadOf([[4, new Map()]])), 'malformed'],
    ['a float', withPayload(payloadOf([[4, new Map([[5, 1.5]])]])), 'malformed'],
    [
      'ranges that touch',
      withPayload(
        payloadOf([
          [
            4,
            new Map([
              [
                10,
                new Map([
                  [
                    1,
                    [
                      [0, 1],
                      [2, 3],
                    ],
                  ],
                ]),
              ],
            ]),
          ],
        ]),
      ),
      'malformed',
    ],
    [
      'keys out of order',
      withPayload(
        Buffer.concat([
          Buffer.from('a2025820', 'hex'),
          publicKeyBytes(keys.first.publicKey),
          Buffer.from('0150', 'hex'),
          Buffer.from(blockId(2), 'hex'),
        ]),
      ),
      'malformed',
    ],
    ['wider rights', widening({}, { rights: ['memory.write'] }), 'widening'],
    ['a later end', widening({}, { expires: NOW + 600_001 }), 'widening'],
    ['an earlier start', widening({}, { notBefore: NOW - 60_001 }), 'widening'],
    ['another audience', widening({}, { audience: keys.first.publicKey }), 'widening'],
    ['a transport more', widening({ transports: ['unix'] }, { transports: ['unix', 'tls'] }), 'widening'],
    ['a use more', widening({ uses: 3 }, { uses: 4 }), 'widening'],
    ['a byte more', widening({ outputBytes: 3 }, { outputBytes: 4 }), 'widening'],
    [
      'an address more',
      widening({ memory: { physical: range(16n, 31n) } }, { memory: { physical: range(15n, 31n) } }),
      'widening',
    ],
    [
      'another kind of memory',
      widening({ memory: { physical: range(0n, 1n) } }, { memory: { kernel: range(0n, 1n) } }),
      'widening',
    ],
    [
      'memory where only processes were',
      widening({ processes: [{ name: 'a' }] }, { memory: { physical: range(0n, 1n) } }),
      'widening',
    ],
    ['a cgroup beside', widening({ processes: [{ cgroup: '/a' }] }, { processes: [{ cgroup: '/ab' }] }), 'widening'],
    [
      'a name without the cgroup',
      widening({ processes: [{ name: 'x', cgroup: '/a' }] }, { processes: [{ name: 'x' }] }),
      'widening',
    ],
    ['a system call more', widening({ syscalls: [1] }, { syscalls: [1, 2] }), 'widening'],
  ]
}

/** Tokens that are refused, and good ones that are refused in their place. */
export function invalidVectors() {
  const token = encodeToken(good())
  return {
    about: 'Chains that are refused, with the code and the reason. `verify` says what differs from token-valid.json.',
    vectors: [
      ...bad().map(([name, bytes, reason]) => ({
        name,
        token: hex(bytes),
        verify: {},
        code: 'ERR_CLOUDAPP_TOKEN',
        reason,
      })),
      ...PLACES.map(([name, verify, code, reason]) => ({ name, token: hex(token), verify, code, reason })),
    ],
  }
}

/** The proof of possession, with fixed nonces. */
export function proofVectors() {
  const token = encodeToken(good())
  const bindings = [
    { transport: 'unix', clientPid: 4711, clientUid: 1001 },
    {
      transport: 'vchan',
      clientDomid: 3,
      clientUuid: vm.uuid,
      brokerDomid: 0,
      brokerUuid: '00000000-0000-0000-0000-000000000000',
    },
    { transport: 'process', session: 'session-1' },
  ] as const
  const brokerNonce = new Uint8Array(32).fill(0xb0)
  const holderNonce = new Uint8Array(32).fill(0x50)
  return {
    about:
      'Both signatures of the handshake for the third holder of a chain of token-valid.json, on different channels.',
    vectors: bindings.map((binding) => {
      const parts = [
        publicKeyBytes(keys.broker.publicKey),
        publicKeyBytes(keys.third.publicKey),
        brokerNonce,
        holderNonce,
      ]
      const transcript = Buffer.concat([...parts, bindingHash(binding), tokenHash(token)])
      const holder = keys.third.sign(Buffer.concat([Buffer.from('cloudapp proof holder v1\0'), transcript]))
      const broker = keys.broker.sign(Buffer.concat([Buffer.from('cloudapp proof broker v1\0'), transcript, holder]))
      return {
        binding,
        bindingHash: hex(bindingHash(binding)),
        ...{ brokerNonce: hex(brokerNonce), holderNonce: hex(holderNonce), tokenHash: hex(tokenHash(token)) },
        ...{ transcript: hex(transcript), holderSignature: hex(holder), brokerSignature: hex(broker) },
      }
    }),
  }
}

/** A grant in JSON: addresses as `0x…`. */
function plain(grant: Grant): unknown {
  return JSON.parse(
    JSON.stringify(grant, (_, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value)),
  )
}
