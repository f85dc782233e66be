import { randomUUID } from 'node:crypto'
import { loadPublicKey } from '../../capabilities/key-files.js'
import { changeOwners, newBootNonce, type OwnedVm } from '../../capabilities/owners.js'
import { CloudAppError } from '../../errors.js'
import { openVm } from '../../vmi/sources/open.js'
import type { Command } from '../command.js'
import { absoluteSource, noteReload, registerOf, registerOption } from '../register.js'

export const command: Command = {
  summary: "Enter a VM in the host's register: whose it is, and where the broker finds it",
  help: [
    "For the host's administrator. Whoever can write the register decides whose every VM is. It is made if it is not there.",
    '',
    'The source is opened once, to see that it is there and which uuid the VM has; a file of memory says none, and the VM gets',
    'a random one. With --uuid nothing is opened, so the VM need not run.',
  ].join('\n'),
  options: {
    owner: { type: 'string', value: 'KEY', required: true, help: "the owner's public key: a file or ed25519:…" },
    source: {
      type: 'string',
      value: 'URI',
      required: true,
      help: 'where it is: qemu:QMP-SOCKET, xen:DOMAIN, raw:FILE, …',
    },
    uuid: { type: 'string', value: 'UUID', help: "the VM's uuid" },
    ...registerOption,
  },
  positionals: [{ name: 'NAME', help: "1 to 64 letters, digits, '.', '_' or '-'", required: true }],
  json: true,
  async run({ args, out, signal }) {
    const register = registerOf(args)
    const owner = await loadPublicKey(args.need('owner'))
    const source = absoluteSource(args.need('source'))
    const uuid = args.text('uuid')?.toLowerCase() ?? (await uuidOf(source, signal))
    const vm = { name: args.positionals[0] ?? '', uuid, bootNonce: newBootNonce(), owner, source }
    await changeOwners(register, (vms) => [...vms, unlike(vms, vm)], { create: true })
    if (out.isJson) out.json({ register, ...vm })
    else out.line(`${vm.name} (${uuid}) belongs to ${owner}`)
    noteReload(out)
    return 0
  },
}

/** RFC 9562, 5.9: of a source that does not know, and of a QEMU that was given none. */
const NIL = '00000000-0000-0000-0000-000000000000'

async function uuidOf(source: string, signal: AbortSignal): Promise<string> {
  await using vm = await openVm(source, { signal })
  return vm.identity.uuid === NIL ? randomUUID() : vm.identity.uuid
}

function unlike(vms: readonly OwnedVm[], vm: OwnedVm): OwnedVm {
  const same = vms.find(({ name, uuid }) => name === vm.name || uuid === vm.uuid)
  if (same === undefined) return vm
  const { name, uuid, owner } = same
  const what = name === vm.name ? `a VM '${name}', with the uuid ${uuid},` : `the VM ${uuid}, as '${name}',`
  const next = `\`cloudapp vm remove ${name}\` takes it out, \`cloudapp vm restarted ${name}\` is for a new start of it`
  throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `the register has ${what} of ${owner} already; ${next}`, {
    vm: name,
  })
}
