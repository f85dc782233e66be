import { isPublicKey, KeyPair } from '../../capabilities/keys.js'
import { makePass } from '../../capabilities/pass.js'
import { ANSWERS, answer } from '../interface/protocol.js'
import { type Check, call, expect, expectCode } from './check.js'

/** Opening a session, and what the service domain says of itself. */
export const OPENING_CHECKS: readonly Check[] = [
  {
    name: 'open.version',
    what: 'The version is the lower of both newest ones',
    async run(subject) {
      const session = await subject.session()
      const asked = (version: number) => call(session, () => session.remote.open({ version }))
      const newest = await asked(1_000_000)
      const { interface: own } = answer(
        'describe',
        ANSWERS.description,
        await call(session, () => newest.service.describe()),
      )
      expect(newest.version === own.version, `asked for 1000000 it speaks ${newest.version}, and says ${own.version}`)
      const { version } = await asked(1)
      expect(version === 1, `asked for 1 it speaks ${version}`)
    },
  },
  {
    name: 'open.arguments',
    what: 'A version that is none, and keys that are unknown, are refused',
    async run(subject) {
      const session = await subject.session()
      const wrong = [undefined, {}, { version: 0 }, { version: -1 }, { version: 1.5 }, { version: '1' }]
      for (const argument of [...wrong, { version: 1, extra: true }, { version: 1, client: 'x'.repeat(300) }]) {
        const what = `open(${JSON.stringify(argument)?.slice(0, 60)})`
        await expectCode(session, 'ERR_CLOUDAPP_INVALID_ARGUMENT', what, () => session.remote.open(argument as never))
      }
    },
  },
  {
    name: 'open.pass',
    what: 'A pass that is forged, for another service domain or for another channel, is refused',
    async run(subject) {
      const { session, service } = await subject.open()
      const { service: own } = answer('describe', ANSWERS.description, await call(session, () => service.describe()))
      const [key, channel] = [KeyPair.generate(), new Uint8Array(32)]
      const expires = Date.now() + 60_000
      const passes = [
        'nonsense',
        'cloudapp-pass1.AAAA',
        makePass(key, { service: KeyPair.generate().publicKey, expires }),
        ...(isPublicKey(own.key) ? [makePass(key, { service: own.key, expires, channel })] : []),
      ]
      for (const [index, pass] of passes.entries()) {
        const open = () => session.remote.open({ version: 1, pass })
        await expectCode(session, 'ERR_CLOUDAPP_PROOF', `open with wrong pass ${index + 1}`, open)
      }
    },
  },
  {
    name: 'describe',
    what: 'describe answers in its form',
    async run(subject) {
      const { session, service } = await subject.open()
      answer('describe', ANSWERS.description, await call(session, () => service.describe()))
    },
  },
  {
    name: 'health',
    what: 'health answers in its form',
    async run(subject) {
      const { session, service } = await subject.open()
      answer('health', ANSWERS.health, await call(session, () => service.health()))
    },
  },
]
