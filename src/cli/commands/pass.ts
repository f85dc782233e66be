import { loadKey, loadPublicKey } from '../../capabilities/key-files.js'
import { makePass, verifyPass } from '../../capabilities/pass.js'
import { isoTime } from '../../capabilities/time.js'
import type { Command } from '../command.js'
import { writeToken } from '../token-options.js'

export const command: Command = {
  summary: "Sign a pass to a service domain's findings about your VMs",
  help: [
    'Who bears the pass sees, and may acknowledge, findings about every VM that the key owns, at that service domain, until',
    'it expires; it gives no right over a VM. It can not be taken back: keep it as a password, and make it short.',
    '`cloudapp gateway` takes it as a bearer credential: curl -H "Authorization: Bearer $(cat FILE)" …',
  ].join('\n'),
  options: {
    key: { type: 'string', value: 'FILE', required: true, help: "the owner's private key" },
    service: {
      type: 'string',
      value: 'KEY',
      required: true,
      help: "the service domain's public key: a file or ed25519:…",
    },
    expires: { type: 'string', value: 'TIME', required: true, help: 'for how long: 30s, 10m, 8h, 7d; at most 366d' },
    out: { type: 'string', value: 'FILE', help: 'write the pass to a new file instead of printing it' },
  },
  json: true,
  async run({ args, out }) {
    const service = await loadPublicKey(args.need('service'))
    const pass = makePass(await loadKey(args.need('key')), { service, expires: args.need('expires') })
    const { customer, expires } = verifyPass(pass, { service })
    const file = args.text('out')
    if (file !== undefined) await writeToken(file, pass)
    if (out.isJson) {
      out.json({ customer, service, expires: isoTime(expires), ...(file === undefined ? { pass } : { file }) })
    } else {
      out.note(`for the VMs of ${customer}, at ${service}, until ${isoTime(expires)}`)
      out.line(file ?? pass)
    }
    return 0
  },
}
