import { crossView, Linux, openVm } from '@cloudapp/sdk/vmi'
import { grown, type Soaked, type Usage, usage } from './usage.js'

/**
 * Opens the VM, attaches, looks for what is hidden, closes it, `count` times.
 *
 * @param guest what names a mapping of the VM's memory in /proc/self/maps.
 * @param warm so many more go before: caches fill, code is compiled.
 */
export async function attachCycles(
  name: string,
  uri: string,
  count: number,
  guest: RegExp,
  progress: (message: string) => void = () => {},
  warm = Math.max(20, Math.floor(count / 10)),
): Promise<Soaked> {
  const began = performance.now()
  let before: Usage | undefined
  for (let i = 0; i < warm + count; i++) {
    if (i === warm) before = await usage(guest)
    if (i % 1000 === 999) progress(`${name}: ${i + 1} cycles`)
    await using vm = await openVm(uri)
    const linux = await Linux.attach(vm)
    if ((await linux.tasks()).length === 0) throw new Error('no tasks')
    await crossView(linux)
  }
  const after = await usage(guest)
  if (before === undefined) throw new Error('nothing was done')
  const seconds = (performance.now() - began) / 1000
  return { name, unit: 'cycles', count, seconds, before, after, grown: grown(before, after) }
}
