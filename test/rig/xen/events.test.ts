import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import {
  APP,
  busyGuest,
  killTogether,
  sharedXen,
  showConsoles,
  storm,
  type TracedGuest,
  type XenHost,
} from './lib/index.js'

let xen: XenHost
let traced: TracedGuest

beforeAll(async () => {
  xen = await sharedXen()
  traced = await busyGuest(xen, 'traced')
}, 900_000)
afterAll(async () => traced?.guest.destroy())
showConsoles()

/** The guest's page with the breakpoint as it is, without the ledger's help. */
const raw = async (): Promise<string> => {
  const page = (BigInt(`0x${traced.symbols.do_sys_openat2}`) & ~0xfffn).toString(16)
  return (await xen.dom0.run(`${APP}/events raw ${traced.guest.domid} ${page} 4096`)).stdout.trim()
}

/** Starts a program in dom0 that says when it watches, and then what it saw, in one line of JSON. */
async function watch(line: string): Promise<{ ended(): Promise<string> }> {
  const log = '/tmp/events.log'
  const program = `cd ${APP}; node ${line}; echo "ended $?"`
  await xen.dom0.run(`rm -f ${log}; (sh -c '${program}') > ${log} 2>&1 &`)
  const until = (word: string): Promise<unknown> =>
    xen.dom0.run(
      `timeout 240 sh -c 'until grep -qE "${word}|^ended" ${log}; do sleep 0.5; done'; grep -q ${word} ${log} || { cat ${log}; exit 1; }`,
      { timeoutMs: 270_000 },
    )
  await until('^watching')
  return {
    ended: async () => {
      await until('^ended')
      const { stdout } = await xen.dom0.run(`cat ${log}`)
      return stdout.split('\n')[1] ?? ''
    },
  }
}

interface Said {
  support: { traps: string[]; breakpoints: string }
  switches: { seen: number; ordered: boolean; matched: number; dropped: number; roots: number; chained: boolean }
  leaves: { seen: number; ordered: boolean }
  opens: { seen: number; ordered: boolean; dfds: string[] }
  stalled: { matched: number; dropped: number; kept: number; told: number }
  hidden: boolean
  at: string
  memoryAccess: string
}

describe('events of a PVH guest', () => {
  it('come in order, with their captures, and leave no trace for readers', async () => {
    const original = await raw()
    const program = await watch(`events.mjs traced do_sys_openat2`)
    // Whoever reads past the ledger sees the breakpoint: so what `hidden` says below is the ledger's doing.
    expect(await raw()).not.toBe(original)
    await traced.guest.run('cat /tmp/a-path-of-the-test', { check: false })
    const said: Said = JSON.parse(await program.ended())
    expect(said.support.breakpoints).toBe('descriptor')
    expect(said.support.traps).toEqual(expect.arrayContaining(['register', 'cpuid', 'descriptor', 'breakpoint']))
    expect(said.switches).toMatchObject({ ordered: true, chained: true, dropped: 0 })
    expect(said.switches.roots).toBeGreaterThan(1)
    expect(said.leaves).toMatchObject({ ordered: true })
    expect(said.opens).toMatchObject({ ordered: true })
    // AT_FDCWD, as the 32-bit argument of do_sys_openat2.
    expect(said.opens.dfds).toContain('0xffffff9c')
    expect(BigInt(said.at)).toBe(BigInt(`0x${traced.symbols.do_sys_openat2}`))
    const { matched, dropped, kept, told } = said.stalled
    expect(dropped).toBeGreaterThan(0)
    expect(kept + told).toBeGreaterThanOrEqual(matched)
    expect(said.hidden).toBe(true)
    expect(said.memoryAccess).toMatch(/^ERR_CLOUDAPP_UNSUPPORTED .*Intel/)
    expect(await raw()).toBe(original)
    await traced.guest.run('true')
  }, 600_000)

  it('come from all that the monitor traps, and the guest gets what it asked for', async () => {
    const program = await watch('traps.mjs traced')
    const { stdout } = await traced.guest.run('/traps')
    expect(stdout).toMatch(/^tsc 0 0\nefer 8 8\nrequest 0\n$/)
    const said = JSON.parse(await program.ended())
    // CR4.TSD, bit 2, on and off (Intel SDM vol. 3, 2.5).
    const [[before, during], [again, after]] = said.cr4
    expect(BigInt(during)).toBe(BigInt(before) | 4n)
    expect([again, after]).toEqual([during, before])
    expect(said.efer[0][1]).toBe(said.efer[0][0])
    expect(said.requests).toHaveLength(1)
    // The agent waits ten seconds for vCPUs to run: not for those its own client keeps from it.
    expect(said.closedMs).toBeLessThan(8000)
    await traced.guest.run('true')
  }, 400_000)

  it('leave nothing in the guest when all that trace it are killed at once, and somebody comes', async () => {
    const original = await raw()
    await watch(`events.mjs traced do_sys_openat2`)
    expect(await raw()).not.toBe(original)
    await killTogether(xen, "$(pgrep -f '[n]ode events.mjs')")
    expect(await raw()).not.toBe(original)
    const recover = ['node_modules/@cloudapp/sdk/dist/cli/main.js', 'vmi', 'recover', '--json']
    const [undone] = JSON.parse((await xen.dom0.node(recover, { timeoutMs: 120_000 })).stdout)
    expect(undone).toMatchObject({ source: `xen:${traced.guest.domid}`, events: true })
    expect(undone.breakpoints).toBeGreaterThan(0)
    expect(await raw()).toBe(original)
    await traced.guest.run('true')
  }, 600_000)

  it('leave the guest running and whole, whoever of the tracers is killed', async () => {
    const stdout = await storm(xen, traced, 20, 7, 580_000)
    expect(stdout).toMatch(/^kills 20, ready \d+, text changed in [1-9]\d*, failed 0;/m)
    expect(stdout).not.toContain('FAILED')
    await traced.guest.run('true')
  }, 600_000)
})
