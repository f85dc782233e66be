import type { OwnerConnection } from '../broker/client.js'
import { connectOwner } from '../broker/client.js'
import { loadKey, loadPublicKey } from '../capabilities/key-files.js'
import type { Invocation, OptionSpec } from './command.js'

/** The options of every command an owner of VMs gives to a broker. */
export const ownerOptions: Readonly<Record<string, OptionSpec>> = {
  broker: {
    type: 'string',
    value: 'SOCKET',
    required: true,
    help: "the broker's unix socket, or tls:HOST:PORT with --broker-key",
  },
  key: { type: 'string', value: 'FILE', required: true, help: "the owner's private key" },
  'broker-key': { type: 'string', value: 'KEY', help: "the broker's public key; another broker is refused" },
}

/** Connects as the owner whose key is given, for the time of `use`. */
export async function withOwner<T>(
  { args, signal }: Invocation,
  use: (owner: OwnerConnection) => Promise<T>,
): Promise<T> {
  const expected = args.text('broker-key')
  const owner = await connectOwner({
    path: args.need('broker'),
    key: await loadKey(args.need('key')),
    signal,
    ...(expected === undefined ? {} : { broker: await loadPublicKey(expected) }),
  })
  try {
    return await use(owner)
  } finally {
    await owner.close()
  }
}
