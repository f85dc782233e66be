import { CloudAppError } from '../../errors.js'
import type { GuestVm } from '../../vmi/guest.js'
import type { Space } from '../../vmi/memory.js'
import { LIMITS, PHYSICAL } from '../../vmi/memory.js'
import { addressOf, integerOf } from '../arguments.js'
import { type Command, type Invocation, UsageError } from '../command.js'
import { hex, hexDump } from '../output.js'
import { sourceOption, withLinux, withVm } from '../vm.js'

export const command: Command = {
  summary: "Read a VM's memory",
  help: 'Addresses are kernel virtual ones unless --physical is given.',
  options: {
    ...sourceOption,
    address: { type: 'string', value: '0x…', required: true, help: 'where to start' },
    length: { type: 'string', value: 'BYTES', required: true, help: `how much, at most ${LIMITS.readLength}` },
    physical: { type: 'boolean', help: 'the address is guest-physical; needs no kernel in the guest' },
  },
  json: true,
  run(invocation) {
    const { args } = invocation
    const address = addressOf('address', args.need('address'))
    const length = integerOf('length', args.need('length'), LIMITS.readLength)
    if (length === 0) throw new UsageError('--length is at least 1')
    return args.flag('physical')
      ? withVm(invocation, (vm) => show(invocation, vm, PHYSICAL, address, length))
      : withLinux(invocation, (linux, vm) => show(invocation, vm, linux.space, address, length))
  },
}

async function show(
  { out, signal }: Invocation,
  vm: GuestVm,
  space: Space,
  at: bigint,
  length: number,
): Promise<number> {
  if (vm.memory === undefined) throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'reading needs the right memory.read')
  const [result] = await vm.memory.read([{ space, at, length }], { signal })
  const fault = result?.faults[0]
  if (result === undefined || fault !== undefined) {
    const why = fault ? `${fault.reason} at level ${fault.level}, entry ${hex(fault.entry)}` : 'no answer'
    throw new CloudAppError('ERR_CLOUDAPP_TRANSLATION', `${hex(fault?.address ?? at)} can not be read: ${why}`, {
      address: fault?.address ?? at,
    })
  }
  if (out.isJson) {
    out.json({ address: at, length, physical: space === PHYSICAL, consistent: result.consistent, bytes: result.bytes })
  } else out.line(hexDump(at, result.bytes))
  return 0
}
