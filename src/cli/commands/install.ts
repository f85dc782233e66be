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
import { Consents } from '../consents.js'
import { changeWords, manifestWords } from '../manifest-words.js'
import { ownerOptions, withOwner } from '../owner.js'
import { caveatOptions, caveatsOf, outOption, writeToken } from '../token-options.js'

export const command: Command = {
  summary: 'Give a service domain what its manifest asks for, after showing it in plain words',
  help: [
    'Delegates the rights the manifest must have, and of the optional ones those named with --with.',
    'Asks on a terminal; elsewhere nothing is delegated without --yes. What was consented to is kept in a folder beside the',
    "owner's key. An update is compared with it, and one that asks for more needs --wider as well: an old consent covers no",
    'new right.',
  ].join('\n'),
  options: {
    ...ownerOptions,
    vm: { type: 'string', value: 'NAME', required: true, help: 'name or uuid of the VM' },
    to: { type: 'string', value: 'KEY', required: true, help: "the service domain's public key: a file or ed25519:…" },
    expires: { type: 'string', value: 'TIME', required: true, help: 'for how long: 30s, 10m, 8h, 7d' },
    publisher: { type: 'string', value: 'KEY', help: 'the publisher you expect: a file or ed25519:…' },
    with: { type: 'string', value: 'LIST', help: 'optional rights to give as well, with commas between them' },
    consents: {
      type: 'string',
      value: 'DIR',
      help: "where consents are kept; the key file's name and .consents by default",
    },
    yes: { type: 'boolean', help: 'consent without being asked' },
    wider: { type: 'boolean', help: 'with --yes: consent also to what asks for more than before' },
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
      const name = args.need('vm')
      const vm = (await owner.vms()).find((own) => own.name === name || own.uuid === name)
      if (vm === undefined) {
        throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `No VM '${name}' of yours is here`, { vm: name })
      }
      const consents = new Consents(args.text('consents') ?? `${args.need('key')}.consents`)
      const wider = shown(manifest, await consents.last(vm.uuid, manifest), out)
      const now = Date.now()
      const expires = momentAfter(args.need('expires'), now, 'expires')
      const caveats = caveatsOf(args)
      const to = await loadPublicKey(args.need('to'))
      const grant: Grant = { ...caveats, vm, rights, notBefore: now, expires, audience: owner.broker }
      out.note(`To be given on ${vm.name}:`)
      for (const sentence of describeGrant(grant)) out.note(`  ${sentence}`)
      if (!(await consented(args, wider, signal))) {
        out.note('nothing was delegated')
        return 1
      }
      // Kept first: nothing is given out that a later update is not compared with.
      await consents.keep(vm.uuid, manifest)
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

/** Shows what is asked for, and what of it is more than before: that is returned, in plain words. */
function shown(manifest: Manifest, before: Manifest | undefined, out: Output): string[] {
  for (const sentence of manifestWords(manifest)) out.note(sentence)
  out.note(`Signed by ${manifest.publisher}.`)
  if (before === undefined) return []
  const changes = diffManifests(before, manifest)
  out.note(changes.length === 0 ? 'The same as before.' : 'Compared with what you consented to (! asks for more):')
  for (const change of changes) out.note(`  ${change.widens ? '!' : ' '} ${changeWords(change)}`)
  return changes.filter(({ widens }) => widens).map(changeWords)
}

/** @throws CloudAppError `ERR_CLOUDAPP_DENIED` where consent is not given and nobody can be asked for it */
async function consented(args: Arguments, wider: readonly string[], signal: AbortSignal): Promise<boolean> {
  if (args.flag('yes')) {
    if (wider.length === 0 || args.flag('wider')) return true
    const what = 'nothing was delegated: it asks for more than was consented to, which needs --wider'
    throw new CloudAppError('ERR_CLOUDAPP_DENIED', [what, ...wider.map((words) => `! ${words}`)].join('\n'), {
      details: { reason: 'wider' },
    })
  }
  if (!process.stdin.isTTY || !process.stderr.isTTY) {
    throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'nothing was delegated: nobody consented', {
      details: { reason: 'consent' },
    })
  }
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    const question = wider.length > 0 ? 'It asks for MORE than before. Delegate? Type yes: ' : 'Delegate? Type yes: '
    return (await terminal.question(question, { signal })).trim() === 'yes'
  } finally {
    terminal.close()
  }
}
