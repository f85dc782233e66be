import { createInterface } from 'node:readline/promises'
import type { Grant } from '../../capabilities/caveats.js'
import { describeGrant } from '../../capabilities/inspect.js'
import { loadPublicKey } from '../../capabilities/key-files.js'
import { type Manifest, readManifest } from '../../capabilities/manifest.js'
import { diffManifests } from '../../capabilities/manifest-diff.js'
import { verifyManifest } from '../../capabilities/manifest-sign.js'
import { ALL_RIGHTS, parseRights, type Right } from '../../capabilities/rights.js'
import { momentAfter } from '../../capabilities/time.js'
import { CloudAppError } from '../../errors.js'
import { type Arguments, type Command, type Output, UsageError } from '../command.js'
import { changeWords, manifestWords } from '../manifest-words.js'
import { ownerOptions, withOwner } from '../owner.js'
import { caveatOptions, caveatsOf, outOption, writeToken } from '../token-options.js'

export const command: Command = {
  summary: 'Give a service domain what its manifest asks for, after showing it in plain words',
  help: [
    'Delegates the rights the manifest must have, and of the optional ones those named with --with.',
    'Asks on a terminal; elsewhere nothing is delegated without --yes. With --previous, the manifest that was consented',
    'to before, an update that asks for more needs --wider as well: an old consent covers no new right.',
  ].join('\n'),
  options: {
    ...ownerOptions,
    vm: { type: 'string', value: 'NAME', required: true, help: 'name or uuid of the VM' },
    to: { type: 'string', value: 'KEY', required: true, help: "the service domain's public key: a file or ed25519:…" },
    expires: { type: 'string', value: 'TIME', required: true, help: 'for how long: 30s, 10m, 8h, 7d' },
    publisher: { type: 'string', value: 'KEY', help: 'the publisher you expect: a file or ed25519:…' },
    with: { type: 'string', value: 'LIST', help: 'optional rights to give as well, with commas between them' },
    previous: { type: 'string', value: 'FILE', help: 'the manifest that is installed' },
    yes: { type: 'boolean', help: 'consent without being asked' },
    wider: { type: 'boolean', help: 'consent also to what asks for more than --previous' },
    out: outOption,
    ...caveatOptions,
  },
  positionals: [{ name: 'MANIFEST', help: 'the manifest, cloudapp.json', required: true }],
  json: true,
  run: (invocation) => {
    const { args, out, signal } = invocation
    return withOwner(invocation, async (owner) => {
      const manifest = await checkedManifest(args)
      const rights = rightsOf(manifest, args.text('with'))
      const widening = await shown(manifest, args, out)
      const name = args.need('vm')
      const vm = (await owner.vms()).find((own) => own.name === name || own.uuid === name)
      if (vm === undefined) {
        throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `No VM '${name}' of yours is here`, { vm: name })
      }
      const now = Date.now()
      const expires = momentAfter(args.need('expires'), now, 'expires')
      const caveats = caveatsOf(args)
      const grant: Grant = { ...caveats, vm, rights, notBefore: now, expires, audience: owner.broker }
      out.note(`To be given on ${vm.name}:`)
      for (const sentence of describeGrant(grant)) out.note(`  ${sentence}`)
      if (!(await consented(args, widening, signal))) {
        out.note(
          widening && args.flag('yes')
            ? 'nothing was delegated: it asks for more than before, which needs --wider'
            : 'nothing was delegated; give --yes to consent',
        )
        return 1
      }
      const to = await loadPublicKey(args.need('to'))
      const granted = await owner.delegate({ ...caveats, vm: vm.uuid, to, rights, expires })
      const file = args.text('out')
      if (file !== undefined) await writeToken(file, granted.token)
      if (out.isJson) {
        const what = file === undefined ? { token: granted.token } : { file }
        out.json({ name: manifest.name, version: manifest.version, rights, blockId: granted.blockId, ...what })
      } else {
        out.note(`block ${granted.blockId}`)
        out.line(file ?? granted.token)
      }
      return 0
    })
  },
}

async function checkedManifest(args: Arguments): Promise<Manifest> {
  const manifest = await readManifest(args.positionals[0] ?? '')
  const expected = args.text('publisher')
  verifyManifest(manifest, expected === undefined ? {} : { publisher: await loadPublicKey(expected) })
  return manifest
}

function rightsOf(manifest: Manifest, wanted: string | undefined): Right[] {
  const optional = wanted === undefined ? [] : parseRights(wanted)
  for (const right of optional) {
    if (!manifest.rights.some((asked) => asked.right === right)) {
      throw new UsageError(`cloudapp install: the manifest does not ask for ${right}`)
    }
  }
  const given = manifest.rights.filter((asked) => asked.optional !== true || optional.includes(asked.right))
  const held = new Set(given.map(({ right }) => right))
  if (held.size === 0) throw new UsageError('cloudapp install: the manifest needs no right, and --with names none')
  return ALL_RIGHTS.filter((right) => held.has(right))
}

/** Shows what is asked for; true if that is more than before. */
async function shown(manifest: Manifest, args: Arguments, out: Output): Promise<boolean> {
  for (const sentence of manifestWords(manifest)) out.note(sentence)
  out.note(`Signed by ${manifest.publisher}.`)
  const previous = args.text('previous')
  if (previous === undefined) return false
  const before = await readManifest(previous)
  verifyManifest(before)
  const changes = diffManifests(before, manifest)
  out.note(changes.length === 0 ? 'The same as before.' : 'Compared with before (! asks for more):')
  for (const change of changes) out.note(`  ${change.widens ? '!' : ' '} ${changeWords(change)}`)
  return changes.some(({ widens }) => widens)
}

async function consented(args: Arguments, widening: boolean, signal: AbortSignal): Promise<boolean> {
  if (args.flag('yes') && (!widening || args.flag('wider'))) return true
  if (args.flag('yes') || !process.stdin.isTTY || !process.stderr.isTTY) return false
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    const question = widening ? 'It asks for MORE than before. Delegate? Type yes: ' : 'Delegate? Type yes: '
    return (await terminal.question(question, { signal })).trim() === 'yes'
  } finally {
    terminal.close()
  }
}
