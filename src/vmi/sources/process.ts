import { readFile } from 'node:fs/promises'

/**
 * When a process was started, which tells it from a later one of its number: clock ticks since boot, `starttime` of proc(5),
 * field 22. Undefined if there is none in our pid namespace that runs (a zombie does not), or none that we may see (hidepid).
 */
export async function startOf(pid: number): Promise<string | undefined> {
  const line = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => undefined)
  // Counted behind the command's name, which may hold blanks and brackets.
  const [state, ...rest] = line?.slice(line.lastIndexOf(')') + 2).split(' ') ?? []
  return state === undefined || 'ZXx'.includes(state) ? undefined : rest[18]
}
