import { appendFileSync, readFileSync } from 'node:fs'

/** __HYPERVISOR_CS, xen/include/public/arch-x86/xen-x86_64.h and Xen's own descriptor table. */
const XEN_CS = 'e008'
/** Xen's image: XEN_VIRT_START, xen/arch/x86/include/asm/config.h; 1 GiB. */
const XEN_IMAGE = /^ffff82d0[4-7]/

/** A domain that ended in a triple fault. */
export interface TripleFault {
  readonly domid: number
  /**
   * It ran with Xen's own code segment, at an address of Xen's image. No guest has these, so nothing that a guest or a test
   * does looks like it: the emulation did it.
   */
  readonly xensOwn: boolean
}

/**
 * The domains that ended in a triple fault, out of what Xen wrote on its console.
 *
 * Now and then (one of some 25 guests on a busy machine) QEMU 7.2 loses a guest when Xen begins its turn. Seen so far: the
 * turn had ended with Xen's own registers where the guest's should be, and the next one ends at once; or the guest's
 * registers are whole, interrupts are off, and it ends at the instruction after the one that Xen emulated (IN, VMMCALL, CR3),
 * where nothing can fault.
 */
export function tripleFaults(console: string): TripleFault[] {
  const lines = console.split('\n')
  return lines.flatMap((line, i) => {
    const domid = /\bd(\d+)v\d+ Triple fault/.exec(line)?.[1]
    if (domid === undefined) return []
    const dump = lines.slice(i + 1, i + 8).join('\n')
    const [, segment, address = ''] = /RIP:\s+(\w+):\[<(\w+)>\]/.exec(dump) ?? []
    return [{ domid: Number(domid), xensOwn: segment === XEN_CS && XEN_IMAGE.test(address) }]
  })
}

/** The consoles of all hosts this process booted. */
const consoles: string[] = []

export function watchConsole(file: string): void {
  consoles.push(file)
}

/** How many guests ended in a triple fault so far, on all hosts this process booted. */
export function lostSoFar(which: (fault: TripleFault) => boolean = () => true): number {
  return consoles.reduce((sum, file) => sum + tripleFaults(read(file)).filter(which).length, 0)
}

let silences = 0

/** A host's dom0 does not answer any more. */
export function noteSilence(): void {
  silences++
}

/** What emulation took so far, as a text that changes with each loss. */
export function losses(): string {
  return `${lostSoFar()} guests ended in a triple fault, dom0 fell silent ${silences} times`
}

/**
 * Notes, for who runs the tests, that a guest ended in a triple fault, or dom0 fell silent, while a test file ran. Linux has a
 * handler for every exception, and none of the tests takes it away: that a guest ends so says, almost always, nothing about
 * what is tested.
 */
export function noteLost(testFile: string): void {
  process.stderr.write(`rig: in ${testFile}: ${losses()}\n`)
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
