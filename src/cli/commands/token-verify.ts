import { loadPublicKey } from '../../capabilities/key-files.js'
import { OwnerRegister } from '../../capabilities/owners.js'
import { isoTime } from '../../capabilities/time.js'
import { parseToken } from '../../capabilities/token.js'
import { type Ownership, verifyToken } from '../../capabilities/verify.js'
import { type Command, UsageError } from '../command.js'
import { arrivingTransport, tokenArgument, tokenPositional } from '../token-options.js'

export const command: Command = {
  summary: 'Check a token: signatures, owner, broker, VM, time',
  help: [
    'What it is checked against is the register of owners of a host, or an owner whose key is given: then the boot of the',
    'VM is taken from the token itself. Revocations are known to the broker alone and are not looked at.',
    'Exits 0 only if a broker would take it.',
  ].join('\n'),
  options: {
    'broker-key': {
      type: 'string',
      value: 'KEY',
      required: true,
      help: "the broker's public key: a file or ed25519:…",
    },
    register: { type: 'string', value: 'FILE', help: "the host's register of owners" },
    owner: { type: 'string', value: 'KEY', help: "or the owner's public key: a file or ed25519:…" },
  },
  positionals: [tokenPositional],
  json: true,
  async run({ args, out }) {
    const token = await tokenArgument(args)
    const grantedOn = parseToken(token).blocks[0]?.vm
    const verified = verifyToken(token, {
      broker: await loadPublicKey(args.need('broker-key')),
      ownerOf: await ownersOf(args.text('register'), args.text('owner'), grantedOn?.bootNonce ?? ''),
      now: Date.now(),
      revoked: () => false,
      // Whether it may come on a transport is asked when it comes.
      ...arrivingTransport(token),
    })
    const { issuer, holder, grant, ids } = verified
    if (out.isJson) out.json({ valid: true, issuer, holder, grant, blocks: ids })
    else out.line(`valid until ${isoTime(grant.expires)}: ${grant.rights.join(', ') || 'no right'}`)
    return 0
  },
}

async function ownersOf(
  register: string | undefined,
  owner: string | undefined,
  bootNonce: string,
): Promise<(uuid: string) => Ownership | undefined> {
  if ((register === undefined) === (owner === undefined)) {
    throw new UsageError('cloudapp token verify: give either --register or --owner')
  }
  if (register !== undefined) return (await OwnerRegister.open(register)).ownerOf
  const key = await loadPublicKey(owner as string)
  return () => ({ owner: key, bootNonce })
}
