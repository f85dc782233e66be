import type { GuestVm } from '../vmi/guest.js'
import { Linux } from '../vmi/linux/linux.js'
import { openVm } from '../vmi/sources/open.js'
import type { Invocation, OptionSpec } from './command.js'

/** The option every `vmi` command has. */
export const sourceOption: Readonly<Record<string, OptionSpec>> = {
  source: {
    type: 'string',
    value: 'URI',
    required: true,
    help: 'the VM: raw:FILE, elf:FILE, lime:FILE, qemu:QMP-SOCKET, xen:DOMAIN or libvmi:KIND:TARGET',
  },
}

/** Opens the VM that `--source` names for the time of `use`. */
export async function withVm<T>({ args, signal }: Invocation, use: (vm: GuestVm) => Promise<T>): Promise<T> {
  const vm = await openVm(args.need('source'), { signal })
  try {
    return await use(vm)
  } finally {
    await vm.close()
  }
}

/** The same, attached to the Linux kernel in it. */
export async function withLinux<T>(invocation: Invocation, use: (linux: Linux, vm: GuestVm) => Promise<T>): Promise<T> {
  return withVm(invocation, async (vm) => use(await Linux.attach(vm, { signal: invocation.signal }), vm))
}
