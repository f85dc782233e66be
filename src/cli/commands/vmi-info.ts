import type { Command } from '../command.js'
import { sourceOption, withLinux } from '../vm.js'

export const command: Command = {
  summary: 'Tell what runs in a VM: kernel, build, where it was loaded, paging',
  options: sourceOption,
  json: true,
  run: (invocation) =>
    withLinux(invocation, async (linux, vm) => {
      const { name, uuid, bootNonce } = vm.identity
      const { boot } = linux.profile
      const info = {
        name,
        uuid,
        bootNonce,
        memoryEnd: vm.memory?.end,
        release: linux.release,
        buildId: linux.buildId,
        text: { start: linux.text.start, end: linux.text.end },
        pageTable: boot.root,
        pagingLevels: boot.levels,
        cpus: boot.cpus,
      }
      const { out } = invocation
      if (out.isJson) out.json(info)
      else {
        out.table(
          [{ title: 'FACT' }, { title: 'VALUE' }],
          [
            ['name', name],
            ['uuid', uuid],
            ['boot nonce', bootNonce],
            ['end of memory', info.memoryEnd],
            ['kernel', info.release],
            ['build id', info.buildId],
            ['text start', info.text.start],
            ['text end', info.text.end],
            ['page table', info.pageTable],
            ['paging levels', info.pagingLevels],
            ['cpus at most', info.cpus],
          ],
        )
      }
      return 0
    }),
}
