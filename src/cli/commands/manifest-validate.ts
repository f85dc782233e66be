import { loadPublicKey } from '../../capabilities/key-files.js'
import { readManifest } from '../../capabilities/manifest.js'
import { verifyManifest } from '../../capabilities/manifest-sign.js'
import type { Command } from '../command.js'
import { manifestWords } from '../manifest-words.js'
import { printable } from '../output.js'

export const command: Command = {
  summary: "Check a service domain's manifest and its signature",
  help: 'Unknown fields, rights that do not exist, and a missing or wrong signature are refused with the reason.',
  options: {
    publisher: { type: 'string', value: 'KEY', help: 'the publisher you expect: a file or ed25519:…' },
  },
  positionals: [{ name: 'FILE', help: 'the manifest, cloudapp.json', required: true }],
  json: true,
  async run({ args, out }) {
    const expected = args.text('publisher')
    const manifest = await readManifest(args.positionals[0] ?? '')
    const publisher = verifyManifest(
      manifest,
      expected === undefined ? {} : { publisher: await loadPublicKey(expected) },
    )
    const words = manifestWords(manifest)
    if (out.isJson) {
      out.json({ valid: true, name: manifest.name, version: manifest.version, publisher, words })
      return 0
    }
    for (const sentence of words) out.line(printable(sentence))
    out.line(`signed by ${publisher}`)
    if (expected === undefined) out.note('who that is, the manifest itself says: compare the key, or give --publisher')
    return 0
  },
}
