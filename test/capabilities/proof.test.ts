import { describe, expect, test } from 'vitest'
import {
  bindingHash,
  type KeyPair,
  ProofResponder,
  ProofVerifier,
  type TransportBinding,
} from '../../src/capabilities/index.js'
import { tokenHash } from '../../src/capabilities/token.js'
import { broker, fault, holders, mint, sd, verify } from './rig.js'

const channel: TransportBinding = { transport: 'unix', clientPid: 4711, clientUid: 1001 }
const token = mint()
const verified = verify(token)
const [, stranger] = holders as [KeyPair, KeyPair]

function responder(more: Partial<ConstructorParameters<typeof ProofResponder>[0]> = {}): ProofResponder {
  return new ProofResponder({ key: sd, token, broker: broker.publicKey, binding: channel, ...more })
}

const code = (call: () => unknown) => fault(call).code

describe('a proof', () => {
  test('convinces both sides', () => {
    const verifier = new ProofVerifier(broker, channel)
    const hello = verifier.challenge()
    const holder = responder()
    holder.verify(verifier.verify(hello, holder.respond(hello), verified))
  })

  test('survives plain objects, as they come off a wire', () => {
    const verifier = new ProofVerifier(broker, channel)
    const { broker: key, nonce } = verifier.challenge()
    const holder = responder()
    const answer = holder.respond({ broker: key, nonce: new Uint8Array(nonce) })
    const accept = verifier.verify({ nonce: new Uint8Array(nonce) }, { ...answer }, verified)
    expect(() => holder.verify({ signature: new Uint8Array(accept.signature) })).not.toThrow()
  })

  test.each<[string, Partial<ConstructorParameters<typeof ProofResponder>[0]>]>([
    ['with another key (a stolen token)', { key: stranger }],
    ['for another token', { token: mint() }],
    ['over another channel (a relay)', { binding: { ...channel, clientPid: 4712 } }],
    ['over another kind of channel', { binding: { transport: 'process', session: 'x' } }],
  ])('%s is refused', (_, more) => {
    const verifier = new ProofVerifier(broker, channel)
    const hello = verifier.challenge()
    const answer = responder(more).respond(hello)
    expect(code(() => verifier.verify(hello, answer, verified))).toBe('ERR_CLOUDAPP_PROOF')
  })

  test('is good once: a replay, and a second try at the same challenge, are refused', () => {
    const verifier = new ProofVerifier(broker, channel)
    const hello = verifier.challenge()
    const answer = responder().respond(hello)
    verifier.verify(hello, answer, verified)
    expect(code(() => verifier.verify(hello, answer, verified))).toBe('ERR_CLOUDAPP_PROOF')
    const again = verifier.challenge()
    expect(code(() => verifier.verify(again, answer, verified))).toBe('ERR_CLOUDAPP_PROOF')
    const good = responder().respond(again)
    expect(code(() => verifier.verify(again, good, verified))).toBe('ERR_CLOUDAPP_PROOF')
  })

  test('of one session says nothing in another', () => {
    const first = new ProofVerifier(broker, channel)
    const hello = first.challenge()
    const answer = responder().respond(hello)
    expect(code(() => new ProofVerifier(broker, channel).verify(hello, answer, verified))).toBe('ERR_CLOUDAPP_PROOF')
  })

  test('is not given to a broker the token is not for', () => {
    const hello = new ProofVerifier(stranger, channel).challenge()
    expect(code(() => responder().respond(hello))).toBe('ERR_CLOUDAPP_PROOF')
  })

  test('relayed by a peer that only claims to be the broker ends at the check of the broker', () => {
    const impostor = new ProofVerifier(stranger, channel)
    const hello = { ...impostor.challenge(), broker: broker.publicKey }
    const holder = responder()
    const answer = holder.respond(hello)
    const forged = { signature: stranger.sign(answer.signature) }
    expect(code(() => holder.verify(forged))).toBe('ERR_CLOUDAPP_PROOF')
    expect(code(() => holder.verify({ signature: answer.signature }))).toBe('ERR_CLOUDAPP_PROOF')
    expect(code(() => holder.verify({} as never))).toBe('ERR_CLOUDAPP_PROOF')
  })

  test('is asked for by few open challenges at a time', () => {
    const verifier = new ProofVerifier(broker, channel)
    const first = verifier.challenge()
    for (let i = 0; i < 8; i++) verifier.challenge()
    const answer = responder().respond(first)
    expect(code(() => verifier.verify(first, answer, verified))).toBe('ERR_CLOUDAPP_PROOF')
  })

  test('of the wrong shape is refused, not fallen over', () => {
    const bad = [
      undefined,
      null,
      {},
      { nonce: 'x', signature: 'y' },
      { nonce: new Uint8Array(31), signature: new Uint8Array(64) },
    ]
    for (const answer of bad) {
      const verifier = new ProofVerifier(broker, channel)
      const hello = verifier.challenge()
      expect(code(() => verifier.verify(hello, answer as never, verified))).toBe('ERR_CLOUDAPP_PROOF')
      expect(code(() => verifier.verify(answer as never, answer as never, verified))).toBe('ERR_CLOUDAPP_PROOF')
    }
    expect(code(() => responder().respond({} as never))).toBe('ERR_CLOUDAPP_PROOF')
    expect(code(() => responder().verify({ signature: new Uint8Array(64) }))).toBe('ERR_CLOUDAPP_PROOF')
  })
})

test('different channels have different bindings', () => {
  const bindings: TransportBinding[] = [
    channel,
    { ...channel, clientPid: 47, clientUid: 111001 },
    { ...channel, clientUid: 0 },
    { transport: 'process', session: '4711' },
    { transport: 'tls', exporter: Buffer.from('4711') },
    { transport: 'vchan', clientDomid: 1, clientUuid: 'a', brokerDomid: 0, brokerUuid: 'b' },
    { transport: 'vchan', clientDomid: 1, clientUuid: 'ab', brokerDomid: 0, brokerUuid: '' },
  ]
  const hashes = bindings.map((binding) => Buffer.from(bindingHash(binding)).toString('hex'))
  expect(new Set(hashes).size).toBe(bindings.length)
  expect(tokenHash(token)).toHaveLength(32)
})
