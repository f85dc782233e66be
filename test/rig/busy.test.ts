import { expect, it } from 'vitest'
import { bootBusyVm } from './lib/index.js'

it('the busy guest is busy in every way it claims', async () => {
  await using busy = await bootBusyVm()
  const has = async (script: string): Promise<string> => (await busy.vm.guest.run(script, { check: false })).stdout
  const before = await busy.counts()
  // Programs and trampolines as the kernel itself lists them.
  expect(await has('grep -c "bpf_prog_.*busy_" /proc/kallsyms')).toMatch(/^([3-9]|\d\d+)\n/)
  expect(await has('grep bpf_trampoline_ /proc/kallsyms')).toContain('[bpf]')
  expect(await has('cat /sys/kernel/debug/kprobes/list')).toMatch(/do_sys_openat2.*\[FTRACE\]/)
  expect(await has('systemctl is-active multi-user.target')).toBe('active\n')
  const later = Object.keys(before).map(
    (name) => `[ $(cat /run/busy/${name}) -gt ${before[name as keyof typeof before]} ]`,
  )
  await busy.vm.guest.run(`until ${later.join(' && ')}; do sleep 0.2; done`, { timeoutMs: 300_000 })
  expect(await has("dmesg | grep -E 'BUG:|WARNING:|Oops|general protection'")).toBe('')
})
