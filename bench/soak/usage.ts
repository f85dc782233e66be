import { readdirSync, readFileSync } from 'node:fs'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

/** What a process holds of its machine. */
export interface Usage {
  /** Resident bytes, after garbage collection. */
  readonly resident: number
  /** Open files. */
  readonly files: number
  /** Bytes of guests' memory that are mapped, as /proc/self/maps names what is mapped. */
  readonly mapped: number
}

/** What a soak came to. */
export interface Soaked {
  readonly name: string
  /** Of what: cycles, events. */
  readonly unit: string
  readonly count: number
  readonly seconds: number
  readonly before: Usage
  readonly after: Usage
  /** What has grown or failed, in words. */
  readonly grown: readonly string[]
}

/** What may grow over a soak: memory by what an allocator and a compiler still settle, the rest not at all. */
const RESIDENT_SLACK = 24 * 2 ** 20

setFlagsFromString('--expose-gc')
const collect: () => void = runInNewContext('gc')

/** @param guest what names a mapping of a guest's memory in /proc/self/maps: a file, or Xen's device. */
export async function usage(guest: RegExp): Promise<Usage> {
  // Finalisers run between turns, and free what the next collection then finds.
  for (let i = 0; i < 3; i++) {
    collect()
    await new Promise((resolve) => setImmediate(resolve))
  }
  let mapped = 0
  for (const line of readFileSync('/proc/self/maps', 'latin1').split('\n')) {
    const [range = ''] = line.split(' ')
    const [from = '', to = ''] = range.split('-')
    if (guest.test(line)) mapped += Number(BigInt(`0x${to}`) - BigInt(`0x${from}`))
  }
  return { resident: process.memoryUsage.rss(), files: readdirSync('/proc/self/fd').length, mapped }
}

/** In words, what has grown; empty if nothing has. */
export function grown(before: Usage, after: Usage): string[] {
  const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`
  return [
    ...(after.resident > before.resident + RESIDENT_SLACK
      ? [`resident memory from ${mib(before.resident)} to ${mib(after.resident)}`]
      : []),
    ...(after.files > before.files ? [`open files from ${before.files} to ${after.files}`] : []),
    ...(after.mapped > before.mapped ? [`mapped from ${mib(before.mapped)} to ${mib(after.mapped)}`] : []),
  ]
}
