import { describeKey } from '../../capabilities/key-files.js'
import type { Command } from '../command.js'

export const command: Command = {
  summary: 'Show the public key of a key file',
  options: {},
  positionals: [{ name: 'KEY', help: 'a private or public key file, or ed25519:… text', required: true }],
  json: true,
  async run({ args, out }) {
    const key = await describeKey(args.positionals[0] ?? '')
    if (out.isJson) out.json(key)
    else {
      out.table([{ title: 'PUBLIC KEY' }, { title: 'ID' }], [[key.publicKey, key.id]])
    }
    return 0
  },
}
