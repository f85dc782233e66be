import { createKeyFile } from '../../capabilities/key-files.js'
import type { Command } from '../command.js'

export const command: Command = {
  summary: 'Make a key pair: FILE (private, mode 0600) and FILE.pub',
  options: {},
  positionals: [{ name: 'FILE', help: 'the private key to write; it must not exist', required: true }],
  json: true,
  async run({ args, out }) {
    const made = await createKeyFile(args.positionals[0] ?? '')
    if (out.isJson) out.json(made)
    else out.line(made.publicKey)
    return 0
  },
}
