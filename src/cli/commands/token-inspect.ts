import { inspectToken } from '../../capabilities/inspect.js'
import type { Command } from '../command.js'
import { tokenArgument, tokenPositional } from '../token-options.js'

export const command: Command = {
  summary: 'Show what a token says, in plain words',
  help: 'Nothing of it is proven: `cloudapp token verify` checks it against a register of owners.',
  options: {},
  positionals: [tokenPositional],
  json: true,
  async run({ args, out }) {
    const { hash, issuer, holder, grant, blocks, words } = inspectToken(await tokenArgument(args))
    if (out.isJson) {
      out.json({ hash, issuer, holder, grant, blocks, words })
      return 0
    }
    out.line(`issued by ${issuer}`)
    out.line(`held by   ${holder}`)
    for (const sentence of words) out.line(sentence)
    out.line()
    out.table(
      [{ title: 'BLOCK' }, { title: 'HOLDER' }, { title: 'RIGHTS' }],
      blocks.map(({ id, holder, narrowing }) => [id, holder, narrowing.rights?.join(',') ?? 'as before']),
    )
    return 0
  },
}
