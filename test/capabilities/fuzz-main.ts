/**
 * The long fuzz run on decoding and verifying tokens, one process a core. Arguments: how many inputs, and a seed to repeat a
 * run with. Says how many it really ran; exits 1 if an input passed that must not, or broke the verifier.
 */
import { spawn } from 'node:child_process'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'
import { type FuzzReport, fuzz, shortfall } from './fuzz.js'

// Two errors are made for each refused input; only their code is looked at.
Error.stackTraceLimit = 0

const [inputs = '1000000', seed = `${Date.now() % 2 ** 31}`, part] = process.argv.slice(2)
if (part === undefined) await all(Number(inputs), Number(seed))
else {
  const { refused, ...report } = fuzz(Number(inputs), Number(seed))
  process.stdout.write(JSON.stringify({ ...report, refused: [...refused] }))
}

async function all(count: number, first: number): Promise<void> {
  const began = performance.now()
  const parts = availableParallelism()
  const each = Math.ceil(count / parts)
  const reports = await Promise.all(Array.from({ length: parts }, (_, i) => run(each, first + i)))
  const total: FuzzReport = { inputs: 0, verified: 0, refused: new Map() }
  for (const { inputs, verified, refused } of reports) {
    total.inputs += inputs
    total.verified += verified
    for (const [why, n] of refused) total.refused.set(why, (total.refused.get(why) ?? 0) + n)
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1)
  const seeds = reports.map((_, i) => first + i).join(' and ')
  console.log(`${total.inputs} tokens decoded and verified in ${seconds} s by ${parts} processes, seeds ${seeds}`)
  console.log(`  good chains: ${total.verified}`)
  for (const [why, n] of total.refused) console.log(`  refused, ${why}: ${n}`)
  const short = shortfall(total)
  if (short === undefined && total.inputs >= count) return
  console.error(short ?? 'fewer inputs than asked for')
  process.exitCode = 1
}

/** One process's share, in a process of its own. */
async function run(count: number, seed: number): Promise<FuzzReport> {
  const file = fileURLToPath(import.meta.url)
  const child = spawn(process.execPath, [...process.execArgv, file, `${count}`, `${seed}`, 'part'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let text = ''
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk
  })
  const code = await new Promise((resolve) => child.once('close', resolve))
  if (code !== 0) throw new Error(`the run with seed ${seed} failed (${code})`)
  const { refused, ...report } = JSON.parse(text) as Omit<FuzzReport, 'refused'> & { refused: [string, number][] }
  return { ...report, refused: new Map(refused) }
}
