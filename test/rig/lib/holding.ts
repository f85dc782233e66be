import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import { startOf } from '../../../src/vmi/sources/process.js'
import { entryOf } from '../../../src/vmi/sources/qemu-ledger.js'
import { projectRoot } from './cache.js'

const PROGRAM = `
  const { openQemu } = await import('./src/vmi/sources/qemu.ts')
  const vm = await openQemu(process.argv[1])
  await vm.pause()
  console.log('paused')
  process.stdin.resume().on('end', () => process.exit())`

/** A process that holds a QEMU VM paused. */
export interface Holder {
  readonly holder: ChildProcess
  /** Its entry in the ledger. */
  readonly entry: string
  /** Kills it together with its guard, as the end of a control group does. */
  killAll(): Promise<void>
}

export async function holding(qmp: string): Promise<Holder> {
  const args = ['--import', './scripts/ts.mjs', '--input-type=module', '-e', PROGRAM, qmp]
  const holder = spawn(process.execPath, args, { cwd: projectRoot, stdio: ['pipe', 'pipe', 'inherit'] })
  await new Promise((resolve, reject) => {
    holder.stdout.once('data', resolve)
    holder.once('exit', () => reject(new Error('the holder ended early')))
  })
  const pid = holder.pid ?? 0
  // The entry of this process would be the same but for its own number.
  const entry = (entryOf(qmp) ?? '').replace(/\d+$/, String(pid))
  return {
    holder,
    entry,
    async killAll() {
      const { holders } = JSON.parse(readFileSync(entry, 'utf8'))
      const guards: number[] = holders.map((of: { pid: number }) => of.pid).filter((of: number) => of !== pid)
      // Stopped first, so that it does nothing between the two.
      for (const guard of guards) process.kill(guard, 'SIGSTOP')
      holder.kill('SIGKILL')
      await once(holder, 'exit')
      for (const guard of guards) process.kill(guard, 'SIGKILL')
      for (const guard of guards) while ((await startOf(guard)) !== undefined) await setTimeout(5)
    },
  }
}
