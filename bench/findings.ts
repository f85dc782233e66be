import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { KeyPair, type Manifest, SdClient, ServiceDomain, signManifest } from '@cloudapp/sdk'
import { type Measurement, median, times } from './measure.js'

const root = fileURLToPath(new URL('..', import.meta.url))
/** As many as a service domain keeps by default. */
const FINDINGS = Number(process.env.CLOUDAPP_BENCH_FINDINGS ?? 1_000_000)
const VMS = 200
/** Calls of `raise` that wait at once. */
const BURST = 2000
const WATCHERS = 200
const SEVERITIES = ['informational', 'low', 'medium', 'high', 'critical', 'fatal'] as const

const MANIFEST: Manifest = {
  cloudapp: 1,
  name: 'bench',
  title: 'Bench',
  version: '1.0.0',
  vendor: 'Bench',
  rights: [],
  publishes: ['findings'],
}

const vm = (index: number) => ({
  name: `vm-${index}`,
  uuid: `00000000-0000-4000-8000-${String(index).padStart(12, '0')}`,
  bootNonce: '0'.repeat(32),
})

/** Findings at scale, on a real disk, through the public API: the service domain's own, and a client's over a unix socket. */
export async function benchFindings(progress: (message: string) => void): Promise<Measurement[]> {
  // Not in /tmp, which may be memory: what is measured waits for a disk.
  const cache = path.join(root, '.cache/bench')
  mkdirSync(cache, { recursive: true })
  const folder = mkdtempSync(path.join(cache, 'findings-'))
  const key = KeyPair.generate()
  const socket = path.join(folder, 'sd.sock')
  const sd = await ServiceDomain.start({
    manifest: signManifest(MANIFEST, key),
    key,
    listen: socket,
    store: path.join(folder, 'findings.db'),
    access: () => 'all',
  })
  try {
    return [...(await create(sd, progress)), ...(await list(socket, progress)), ...(await fanout(sd, socket, progress))]
  } finally {
    await sd.close()
    rmSync(folder, { recursive: true })
  }
}

async function create(sd: ServiceDomain, progress: (message: string) => void): Promise<Measurement[]> {
  progress(`raising ${FINDINGS} findings, each durable`)
  const rates: number[] = []
  for (let made = 0; made < FINDINGS; made += BURST) {
    const begun = performance.now()
    await Promise.all(
      Array.from({ length: BURST }, (_, i) => {
        const n = made + i
        return sd.findings.raise({
          key: `hidden-process-${n}`,
          about: vm(n % VMS),
          title: `Hidden process ${n} (miner)`,
          // One in a thousand is fatal: a filter that finds little has the most to look through.
          severity: n % 1000 === 0 ? 'fatal' : (SEVERITIES[n % 5] ?? 'low'),
          evidence: { process: { pid: n, name: 'miner' }, data: { books: ['pid IDR', 'cgroup'] } },
        })
      }),
    )
    rates.push((BURST / (performance.now() - begun)) * 1000)
  }
  const rss = process.memoryUsage.rss() / 1024 ** 2
  return [
    {
      name: 'findings.create',
      value: median(rates),
      unit: '1/s',
      note: `durable, ${BURST} at once, median of ${rates.length} bursts; the last tenth ${median(rates.slice(-rates.length / 10)).toFixed(0)}; ${rss.toFixed(0)} MiB resident after ${FINDINGS}`,
    },
  ]
}

async function list(socket: string, progress: (message: string) => void): Promise<Measurement[]> {
  progress('listing them by filter and cursor')
  await using client = await SdClient.connect(socket)
  const first = async (options: Parameters<typeof client.findings.list>[0]) => {
    let cursor: string | undefined
    for await (const found of client.findings.list({ limit: 100, ...options })) cursor = found.cursor
    return cursor
  }
  const middle = await first({ limit: 5000 })
  const filters = {
    everything: {},
    'from a cursor on': { since: middle },
    'one VM': { vm: 'vm-7' },
    'one VM, high, open': { vm: 'vm-7', minSeverity: 'high', status: 'open' },
    'fatal, from a cursor on': { minSeverity: 'fatal', since: middle },
    closed: { status: 'closed' },
  } as const
  let worst = { name: '', ms: 0 }
  for (const [name, filter] of Object.entries(filters)) {
    const options = Object.fromEntries(Object.entries(filter).filter(([, value]) => value !== undefined))
    const ms = median(await times(20, 2, () => first(options)))
    if (ms > worst.ms) worst = { name, ms }
  }
  const note = `a page of 100 of ${FINDINGS}, over a unix socket, checked by the client; the slowest of ${Object.keys(filters).length} filters (${worst.name}), median of 20`
  return [{ name: 'findings.list-1m', value: worst.ms, unit: 'ms', note }]
}

async function fanout(sd: ServiceDomain, socket: string, progress: (message: string) => void): Promise<Measurement[]> {
  progress(`${WATCHERS} watching clients, one of them stalled`)
  const child = spawn(
    process.execPath,
    [
      '--import',
      path.join(root, 'scripts/ts.mjs'),
      path.join(root, 'bench/findings-watchers.ts'),
      socket,
      `${WATCHERS}`,
    ],
    { stdio: ['pipe', 'pipe', 'inherit'], cwd: root },
  )
  try {
    const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
    const line = async () => {
      const { value, done } = await lines.next()
      if (done) throw new Error('the watchers ended')
      return JSON.parse(value)
    }
    await line()
    const rounds = 60
    const raise = (index: number, key: string, title: string, sent: number) => {
      const about = index === 0 ? vm(0) : { ...vm(VMS), name: 'stalled' }
      return sd.findings.raise({
        key,
        about,
        title,
        severity: index === 0 ? 'fatal' : 'low',
        evidence: { data: { sent } },
      })
    }
    for (let i = 0; i < rounds; i++) {
      await raise(0, `fanout-${i}`, 'fanout', performance.timeOrigin + performance.now())
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    // More than is held for the stalled one; the first of them it takes.
    await raise(1, 'first', 'first', 0)
    const flood = 3000
    for (let i = 0; i < flood; i += 500) {
      await Promise.all(Array.from({ length: 500 }, (_, j) => raise(1, `flood-${i + j}`, 'flood', 0)))
    }
    await raise(1, 'last', 'last', 0)
    child.stdin.write('resume\n')
    const { took, gap, seen } = (await line()) as { took: number[]; gap: number; seen: number }
    if (took.length !== rounds * (WATCHERS - 1)) throw new Error(`${took.length} of ${rounds * (WATCHERS - 1)} arrived`)
    if (gap === 0 || gap + seen !== flood + 2) throw new Error(`a gap of ${gap} and ${seen} seen, of ${flood + 2}`)
    const sorted = took.sort((a, b) => a - b)
    const p99 = sorted[Math.floor(sorted.length * 0.99)] ?? Number.NaN
    return [
      {
        name: 'findings.fanout-200.median',
        value: median(took),
        unit: 'ms',
        note: `from raise to each of ${WATCHERS - 1} clients (one process), p99 ${p99.toFixed(1)}; the stalled one was told of a gap of exactly ${gap}`,
      },
    ]
  } finally {
    await end(child)
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null) return
  const gone = new Promise((resolve) => child.once('exit', resolve))
  child.kill()
  await gone
}
