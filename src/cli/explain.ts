import { CloudAppError, type CloudAppErrorCode } from '../errors.js'
import { hex, printable } from './output.js'

/** What a person can do about each error, where the error's own message does not say it. */
const NEXT: Readonly<Partial<Record<CloudAppErrorCode, string>>> = {
  ERR_CLOUDAPP_INVALID_ARGUMENT: 'correct the argument; `--help` lists what the command takes',
  ERR_CLOUDAPP_NOT_FOUND: 'check the name; it is case sensitive',
  ERR_CLOUDAPP_TRANSLATION: 'the guest has no memory at that address; `--physical` reads guest-physical addresses',
  ERR_CLOUDAPP_GUEST_CORRUPT:
    "the guest's data contradict themselves: a hostile guest, or one that changed during the look; try again",
  ERR_CLOUDAPP_PROFILE: 'the guest must run Linux 5.10 or later built with kallsyms and BTF',
  ERR_CLOUDAPP_SOURCE:
    'check that the VM runs, that the path is right and that you may open it; `cloudapp doctor` checks this host',
  ERR_CLOUDAPP_LIMIT: 'ask for less at a time',
  ERR_CLOUDAPP_DENIED: "ask the VM's owner to delegate the missing right (`cloudapp delegate`)",
  ERR_CLOUDAPP_REVOKED: "the VM's owner took the delegation back; ask for a new one",
  ERR_CLOUDAPP_EXPIRED: "ask the VM's owner for a new delegation, or a new pass",
  ERR_CLOUDAPP_TOKEN: 'use the token exactly as it was handed over, for the VM and the broker it names',
  ERR_CLOUDAPP_PROOF:
    'use the private key of the party the token was delegated to; a pass at the service domain it names',
  ERR_CLOUDAPP_AUDIT: 'do not trust the log past the record named above; compare with the last head you were handed',
  ERR_CLOUDAPP_PROTOCOL: 'check that the endpoint is a service of this package and of a fitting version',
  ERR_CLOUDAPP_TIMEOUT: 'check that the other side runs, and try again',
  ERR_CLOUDAPP_NATIVE: 'run `cloudapp doctor`: it says which native library is looked for and where',
}

/** The same where the error says which of its kinds it is: by its code and `details.reason`. */
const NEXT_BY_REASON: Readonly<Record<string, string>> = {
  'ERR_CLOUDAPP_NOT_FOUND not-listening':
    'start what listens there, the broker by `cloudapp broker --config FILE`; or name the place where it does listen',
  'ERR_CLOUDAPP_TOKEN widening':
    'ask for no more than the token has of what is named above; `cloudapp token inspect` shows what it allows',
  'ERR_CLOUDAPP_PROOF unsigned': 'its publisher signs it: `cloudapp manifest sign FILE --key KEY`',
  'ERR_CLOUDAPP_PROOF publisher': 'get the manifest from the publisher you expect: this one is by somebody else',
  'ERR_CLOUDAPP_PROOF signature':
    'get the manifest anew from its publisher, or, if that is you, sign it anew: `cloudapp manifest sign`',
  'ERR_CLOUDAPP_DENIED wider': 'look at what is marked with !; give --wider to consent to it too',
  'ERR_CLOUDAPP_DENIED consent': 'run it on a terminal, or give --yes to consent to what is shown',
}

const nextOf = ({ code, details }: CloudAppError): string | undefined =>
  NEXT_BY_REASON[`${code} ${String(details?.reason)}`] ?? NEXT[code]

/** What a person reads about a failure: what happened, on what, what to do next, and the code. */
export function explain(error: unknown): string {
  if (!CloudAppError.is(error)) {
    const text = error instanceof Error ? (error.stack ?? error.message) : String(error)
    return `cloudapp: unexpected failure, please report it\n${text.split('\n').map(printable).join('\n')}`
  }
  const about = [
    error.vm === undefined ? undefined : `VM ${error.vm}`,
    error.right === undefined ? undefined : `right ${error.right}`,
    error.address === undefined ? undefined : `address ${hex(error.address)}`,
  ].filter((part) => part !== undefined)
  const lines = [`cloudapp: ${error.message.split('\n').map(printable).join('\n  ')}`]
  if (about.length > 0) lines.push(`  about: ${printable(about.join(', '))}`)
  for (const [name, value] of Object.entries(error.details ?? {})) {
    lines.push(`  ${printable(name)}: ${printable(typeof value === 'bigint' ? hex(value) : String(value))}`)
  }
  const cause = error.cause
  if (cause instanceof Error) lines.push(`  cause: ${printable(cause.message)}`)
  const next = nextOf(error)
  if (next) lines.push(`  what to do: ${next}`)
  lines.push(`  code: ${error.code}`)
  return lines.join('\n')
}

/** The same for programs: the document `--json` prints when a command fails. */
export function errorDocument(error: unknown): object {
  if (!CloudAppError.is(error)) {
    return {
      error: { code: 'ERR_CLOUDAPP_UNEXPECTED', message: error instanceof Error ? error.message : String(error) },
    }
  }
  const { code, message, address, right, vm, details } = error
  return { error: { code, message, address, right, vm, details } }
}
