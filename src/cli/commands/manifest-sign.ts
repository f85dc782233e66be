import { replaceFile } from '../../capabilities/files.js'
import { loadKey } from '../../capabilities/key-files.js'
import { readManifest } from '../../capabilities/manifest.js'
import { signManifest } from '../../capabilities/manifest-sign.js'
import type { Command } from '../command.js'

export const command: Command = {
  summary: "Sign a manifest with its publisher's key",
  help: 'Puts publisher and signature into the file, in place of what was there. With --out the file stays as it is.',
  options: {
    key: { type: 'string', value: 'FILE', required: true, help: "the publisher's private key" },
    out: { type: 'string', value: 'FILE', help: 'where the signed manifest goes' },
  },
  positionals: [{ name: 'FILE', help: 'the manifest, cloudapp.json', required: true }],
  json: true,
  async run({ args, out }) {
    const path = args.positionals[0] ?? ''
    const signed = signManifest(await readManifest(path), await loadKey(args.need('key')))
    const file = args.text('out') ?? path
    await replaceFile(file, `${JSON.stringify(signed, null, 2)}\n`, 0o644)
    if (out.isJson) out.json({ file, publisher: signed.publisher, signature: signed.signature })
    else out.line(`${file} is signed by ${signed.publisher}`)
    return 0
  },
}
