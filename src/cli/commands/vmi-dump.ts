import { CloudAppError } from '../../errors.js'
import { dumpElf } from '../../vmi/dump.js'
import type { Command } from '../command.js'
import { sourceOption, withVm } from '../vm.js'

/** ms between two lines of progress. */
const EVERY = 2000

export const command: Command = {
  summary: "Write a VM's memory to a file",
  help: `The file is an ELF core that elf:FILE opens; only its owner may read it. Without --pause a running VM changes while it is
written, and the file has no single moment's picture.`,
  options: {
    ...sourceOption,
    out: { type: 'string', value: 'FILE', required: true, help: 'a file that does not exist yet' },
    pause: { type: 'boolean', help: 'hold the VM paused meanwhile' },
  },
  json: true,
  run: (invocation) =>
    withVm(invocation, async (vm) => {
      const { args, out, signal } = invocation
      const path = args.need('out')
      const { memory } = vm
      if (memory === undefined) throw new CloudAppError('ERR_CLOUDAPP_DENIED', 'a dump needs the right memory.read')
      if (args.flag('pause') && vm.pause === undefined) {
        throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `${vm.identity.name} can not be paused by its source`)
      }
      const began = performance.now()
      let told = began
      const onProgress = (done: bigint, all: bigint) => {
        if (!process.stderr.isTTY || performance.now() - told < EVERY) return
        told = performance.now()
        out.note(`${(done * 100n) / all} % of ${all >> 20n} MiB`)
      }
      await using _ = args.flag('pause') ? await vm.pause?.() : undefined
      const bytes = await dumpElf(memory, path, { signal, onProgress })
      const seconds = (performance.now() - began) / 1000
      if (out.isJson) out.json({ file: path, bytes: Number(bytes), seconds })
      else out.line(`${path}: ${bytes >> 20n} MiB of memory in ${seconds.toFixed(1)} s`)
      return 0
    }),
}
