import type { Command } from '../command.js'
import { sourceOption, withLinux } from '../vm.js'

export const command: Command = {
  summary: "List a VM's processes, as its kernel has them",
  options: { ...sourceOption, threads: { type: 'boolean', help: 'also list the threads of each process' } },
  json: true,
  run: (invocation) =>
    withLinux(invocation, async (linux) => {
      const { args, out } = invocation
      const tasks = await linux.tasks({ threads: args.flag('threads') })
      if (out.isJson) {
        out.json(
          tasks.map(({ pid, tgid, ppid, comm, uid, kernelThread, task, dtb }) => ({
            pid,
            tgid,
            ppid,
            comm,
            uid,
            kernelThread,
            task,
            dtb,
          })),
        )
      } else {
        out.table(
          [
            { title: 'PID', right: true },
            { title: 'TGID', right: true },
            { title: 'PPID', right: true },
            { title: 'UID', right: true },
            { title: 'TASK' },
            { title: 'DTB' },
            { title: 'COMM' },
          ],
          tasks.map((task) => [
            task.pid,
            task.tgid,
            task.ppid,
            task.uid,
            task.task,
            task.dtb === 0n ? undefined : task.dtb,
            task.kernelThread ? `[${task.comm}]` : task.comm,
          ]),
        )
      }
      return 0
    }),
}
