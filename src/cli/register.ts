import path from 'node:path'
import type { OwnedVm } from '../capabilities/owners.js'
import { CloudAppError } from '../errors.js'
import { parseSource } from '../vmi/sources/open.js'
import type { Arguments, OptionSpec, Output, PositionalSpec } from './command.js'

/** Where examples/broker has it. */
const DEFAULT_REGISTER = '/etc/cloudapp/owners.json'

/** The option of every `vm` command. */
export const registerOption: Readonly<Record<string, OptionSpec>> = {
  register: { type: 'string', value: 'FILE', help: `the host's register; ${DEFAULT_REGISTER} by default` },
}

export const registeredPositional: PositionalSpec = {
  name: 'NAME',
  help: 'name or uuid of the VM in the register',
  required: true,
}

export const registerOf = (args: Arguments): string => args.text('register') ?? DEFAULT_REGISTER

/** @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` */
export function registered(vms: readonly OwnedVm[], name: string): OwnedVm {
  const found = vms.find((vm) => vm.name === name || vm.uuid === name)
  if (found !== undefined) return found
  throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `the register has no VM '${name}'`, { vm: name })
}

/**
 * A source as a broker can open it, whose working folder is another.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_INVALID_ARGUMENT` for a URI of no known source
 */
export function absoluteSource(uri: string): string {
  const { scheme, place } = parseSource(uri)
  if (scheme === 'xen') return uri
  if (scheme !== 'libvmi') return `${scheme}:${path.resolve(place)}`
  return place.startsWith('file:') ? `libvmi:file:${path.resolve(place.slice('file:'.length))}` : uri
}

/** Whoever changed the register is told what is still to be done. */
export function noteReload(out: Output): void {
  if (!out.isJson) out.note('a broker that runs reads it on SIGHUP (systemctl reload cloudapp-broker)')
}
