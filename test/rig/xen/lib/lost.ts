import { appendFileSync, readFileSync } from 'node:fs'

/** __HYPERVISOR_CS, xen/include/public/arch-x86/xen-x86_64.h and Xen's own descriptor table. */
const XEN_CS = 'e008'
/** Xen's image: XEN_VIRT_START, xen/arch/x86/include/asm/config.h; 1 GiB. */
const XEN_IMAGE = /^ffff82d0[4-7]/

/**
 * The domains that the emulation itself ended, out of what Xen wrote on its console.
 *
 * Now and then (one of some 25 guests on a busy machine) QEMU leaves a guest's turn with Xen's own registers where the
 * guest's should be. The next turn ends at once in a triple fault, with Xen's code segment and an address of Xen's image:
 * no guest has these, so nothing that a guest or a test does looks like it.
 */
export function lostGuests(console: string): number[] {
  const lines = console.split('\n')
  return lines.flatMap((line, i) => {
    const domid = /\bd(\d+)v\d+ Triple fault/.exec(line)?.[1]
    if (domid === undefined) return []
    const dump = lines.slice(i + 1, i + 8).join('\n')
    const [, segment, address = ''] = /RIP:\s+(\w+):\[<(\w+)>\]/.exec(dump) ?? []
    return segment === XEN_CS && XEN_IMAGE.test(address) ? [Number(domid)] : []
  })
}

/** The consoles of all hosts this process booted. */
const consoles: string[] = []

export function watchConsole(file: string): void {
  consoles.push(file)
}

/** How many guests were lost so far. */
export function lostSoFar(): number {
  return consoles.reduce((sum, file) => sum + lostGuests(read(file)).length, 0)
}

/** Notes, for who runs the tests, that a guest was lost while a test file ran: that says nothing about what it tests. */
export function noteLost(testFile: string): void {
  process.stderr.write(`rig: the emulation lost a guest of ${testFile}\n`)
  const { RIG_LOST } = process.env
  if (RIG_LOST) appendFileSync(RIG_LOST, `${testFile}\n`)
}

function read(file: string): string {
  try {
    return readFileSync(file, 'latin1')
  } catch {
    // Its host is gone.
    return ''
  }
}
