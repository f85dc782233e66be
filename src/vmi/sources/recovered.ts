/** What was undone in a VM that killed processes had left. */
export interface RecoveredVm {
  /** Where it was found, as for openVm: `xen:DOMID` or `qemu:SOCKET`. */
  readonly source: string
  /** Breakpoints taken out of its memory. */
  readonly breakpoints: number
  /** True if its events were still trapped, with vCPUs that waited for an answer. */
  readonly events: boolean
  /** Pauses that nobody was left to end. */
  readonly pauses: number
}

/** The same in words. */
export function toldOf({ source, breakpoints, events, pauses }: RecoveredVm): string {
  const count = (number: number, what: string) => (number === 0 ? [] : [`${number} ${what}${number === 1 ? '' : 's'}`])
  const undone = [...count(breakpoints, 'breakpoint'), ...(events ? ['trapped events'] : []), ...count(pauses, 'pause')]
  return `${source}: undid ${undone.join(', ')} that killed processes left`
}
