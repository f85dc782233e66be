import type { XenGuest } from './guest.js'
import type { XenHost } from './host.js'
import { APP } from './payload.js'
import { guestProgram } from './probe.js'

const AGENT = `${APP}/node_modules/@cloudapp/sdk-linux-x64/cloudapp-event-agent`

/** A guest to be traced, and where its kernel is: hexadecimal addresses, as its own /proc/kallsyms has them. */
export interface TracedGuest {
  readonly guest: XenGuest
  readonly symbols: { readonly _stext: string; readonly _etext: string; readonly do_sys_openat2: string }
}

/**
 * A PVH guest that switches processes, starts programs (each asks CPUID) and opens files for as long as it lives.
 * `/traps` does what can be trapped beside that (test/rig/guest/traps.c).
 */
export async function busyGuest(xen: XenHost, name: string): Promise<TracedGuest> {
  const guest = await xen.createGuest({
    name,
    kind: 'pvh',
    extraModules: ['msr', 'xen-privcmd'],
    files: { '/traps': await guestProgram('traps') },
  })
  await guest.run('insmod /lib/rig/msr.ko; insmod /lib/rig/xen_privcmd.ko unrestricted=1')
  const { stdout } = await guest.run('grep -wE "_stext|_etext|do_sys_openat2" /proc/kallsyms')
  const rows = stdout
    .trim()
    .split('\n')
    .map((line) => line.split(/\s+/))
  const symbols = Object.fromEntries(rows.map(([address, , name]) => [name, address]))
  await guest.run('(while true; do cat /proc/version /etc/none; sleep 0.02; done) > /dev/null 2>&1 &')
  return { guest, symbols }
}

/** Kills tracers of the guest so many times, and looks after each whether it runs on with its own text (native/events.c). */
export async function storm(
  xen: XenHost,
  { guest, symbols }: TracedGuest,
  kills: number,
  seed: number,
  timeoutMs: number,
): Promise<string> {
  const bytes = (BigInt(`0x${symbols._etext}`) - BigInt(`0x${symbols._stext}`)) & ~0xfffn
  const words = [AGENT, guest.domid, kills, seed, symbols._stext, bytes, 'cr3', `bp:${symbols.do_sys_openat2}`]
  return (await xen.dom0.run(`${APP}/events storm ${words.join(' ')}`, { timeoutMs, check: false })).stdout
}

/**
 * Kills a program in dom0 and all event agents there together, so that none of them is left to put anything back.
 *
 * @param pids words of the shell
 */
export async function killTogether(xen: XenHost, pids: string): Promise<void> {
  const all = `all="${pids} $(pgrep -f '[c]loudapp-event-agent' | tr '\\n' ' ')"`
  const gone = 'for pid in $all; do while [ -e /proc/$pid/exe ]; do sleep 0.1; done; done'
  // One after the other would be time enough for an agent.
  await xen.dom0.run(`${all}; kill -STOP $all && kill -KILL $all; ${gone}`)
}
