import type { Command } from '../command.js'
import { sourceOption, withLinux } from '../vm.js'

export const command: Command = {
  summary: "List the modules of a VM's kernel",
  options: sourceOption,
  json: true,
  run: (invocation) =>
    withLinux(invocation, async (linux) => {
      const modules = await linux.modules()
      if (invocation.out.isJson) {
        invocation.out.json(
          modules.map(({ name, base, size, state, refcount, ranges, module }) => ({
            name,
            base,
            size,
            state,
            refcount,
            ranges: ranges.map(({ start, end, kind }) => ({ start, end, kind })),
            module,
          })),
        )
      } else {
        invocation.out.table(
          [
            { title: 'NAME' },
            { title: 'SIZE', right: true },
            { title: 'USED', right: true },
            { title: 'STATE' },
            { title: 'BASE' },
          ],
          modules.map((module) => [module.name, module.size, module.refcount, module.state, module.base]),
        )
      }
      return 0
    }),
}
