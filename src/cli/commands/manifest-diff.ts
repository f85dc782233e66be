import { readManifest } from '../../capabilities/manifest.js'
import { diffManifests } from '../../capabilities/manifest-diff.js'
import { verifyManifest } from '../../capabilities/manifest-sign.js'
import type { Command } from '../command.js'
import { changeWords } from '../manifest-words.js'
import { printable } from '../output.js'

export const command: Command = {
  summary: 'Show what an update of a service domain changes; what asks for more is marked',
  help: 'Both manifests must be signed. Lines with ! widen: more is asked for, or somebody else asks.',
  options: {},
  positionals: [
    { name: 'OLD', help: 'the manifest that was consented to', required: true },
    { name: 'NEW', help: 'the manifest of the update', required: true },
  ],
  json: true,
  async run({ args, out }) {
    const [before, after] = await Promise.all(args.positionals.map((path) => readManifest(path)))
    if (before === undefined || after === undefined) return 2
    verifyManifest(before)
    verifyManifest(after)
    const changes = diffManifests(before, after)
    const widens = changes.some((change) => change.widens)
    if (out.isJson) {
      out.json({ widens, changes })
      return 0
    }
    for (const change of changes) out.line(`${change.widens ? '!' : ' '} ${printable(changeWords(change))}`)
    out.line(
      changes.length === 0 ? 'no difference' : widens ? 'asks for more than before' : 'asks for no more than before',
    )
    return 0
  },
}
