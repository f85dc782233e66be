/**
 * The main job once, for real, through every party: a customer delegates, a service domain finds a rootkit in a running
 * VM, the client reads the findings, the customer takes the rights back. Each party is a process, and each but the
 * broker runs as a user of its own. Every step checks what it says; the first that is not so ends the demo with status 1.
 */
import type { ChildProcess } from 'node:child_process'
import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import { loadPublicKey, newBootNonce, parseOwners, writeOwners } from '@cloudapp/sdk'
import {
  type BusyVm,
  bootBusyVm,
  bootVm,
  kernel,
  prepare,
  rootkit,
  rootkitParameters,
  type Vm,
} from '../../test/rig/lib/index.js'
import { Output, Parties, UIDS } from './parties.js'
import { check, heading, indent, progress, say } from './say.js'

const SCANS = 20
const RIGHTS = 'vm.info,memory.read,vcpu.read'

interface Detector {
  readonly key: string
  readonly output: Output
  stop(): Promise<void>
}

interface Delegated {
  readonly blockId: string
  readonly words: readonly string[]
}

await prepare({ progress })
const begun = Date.now()
let broker: ChildProcess | undefined
await using parties = await Parties.install()
heading('1. A client VM with a rootkit in it (a busy one without boots meanwhile, for step 6)')
const busyBoot = bootBusyVm({ name: 'busy-1', progress })
busyBoot.catch(() => {})
await using web = await bootInfected()

heading('2. The broker starts; it alone may open the VMs')
broker = await startBroker()
await showClosedDoors()

heading('3. The customer delegates three rights over web-1 for ten minutes, to the key of the detector')
const detector = await startDetector()
const granted = await delegate('web-1', 'web-1.token')
for (const sentence of granted.words) indent(sentence)

heading('4. The detector attaches with no configuration and looks; the client VM asks for its findings')
await showFindings()

heading('5. What the token does not say, the detector can not do')
const refused = await parties.run('sd', 'probe', ['overreach', parties.socket('broker'), ...holder('web-1.token')])
check(refused.stdout.trim() === 'ERR_CLOUDAPP_DENIED', `writing memory is refused (${refused.stdout.trim()})`, refused)
await showAudited('memory.write')

heading(`6. ${SCANS} scans of the busy VM, which runs on meanwhile`)
await using busy = await busyBoot
await register(web, busy.vm)
await scanBusy(busy)

heading('7. The customer takes the rights over web-1 back')
await revoke(granted)

heading('8. The audit log')
await verifyAudit()

await detector.stop()
say(`\nDone in ${Math.round((Date.now() - begun) / 1000)} s. Ending what was started.`)

async function bootInfected(): Promise<Vm> {
  const linux = await kernel('6.1', { progress })
  const module = await rootkit(linux, { progress })
  const vm = await bootVm({ name: 'web-1', kernel: linux, files: { '/lib/rig/shade.ko': module }, progress })
  const { guest } = vm
  const pid = (
    await guest.run('sh -c "while :; do date > /tmp/alive; sleep 1; done" >/dev/null 2>&1 & echo $!')
  ).stdout.trim()
  const before = (await guest.run(`ps | grep -c "^ *${pid} "`)).stdout.trim()
  check(before === '1', `a process runs in it: pid ${pid}, and ps shows it`)
  const hide = rootkitParameters({ hidePids: [Number(pid)], hookFtrace: true, hookPatch: true, hideModule: true })
  await guest.run(`insmod /lib/rig/shade.ko ${hide}`)
  say('  the rootkit is loaded: it hides the process and itself, and diverts getdents64 and kill')
  const ps = await guest.run(`ps | grep -c "^ *${pid} "`, { check: false })
  const lsmod = await guest.run('lsmod | grep -c "^shade "; ls /sys/module | grep -c "^shade$"', { check: false })
  check(ps.stdout.trim() === '0', `ps in the VM does not show pid ${pid} any more`)
  check(lsmod.stdout.trim() === '0\n0', 'lsmod and /sys/module do not show the module')
  await guest.run(
    'rm -f /tmp/alive; i=0; while [ ! -s /tmp/alive ] && [ $i -lt 30 ]; do sleep 1; i=$((i+1)); done; test -s /tmp/alive',
  )
  check(true, 'and yet the process lives: it goes on writing its file')
  return vm
}

/** What the host's administrator does when a VM is made: say whose it is. */
async function register(...vms: Vm[]): Promise<void> {
  const path = parties.file('root', 'register.json')
  const known = existsSync(path) ? parseOwners(readFileSync(path, 'utf8')) : []
  const owner = await loadPublicKey(parties.file('customer', 'owner.key.pub'))
  const entries = vms.map(async (vm) => {
    const entry = { name: vm.name, uuid: await uuidOf(vm), bootNonce: newBootNonce(), owner, source: vm.uri }
    return known.find(({ uuid }) => uuid === entry.uuid) ?? entry
  })
  await writeOwners(path, await Promise.all(entries))
  if (broker === undefined) return
  const read = new Promise((resolve) => broker?.stderr?.once('data', resolve))
  broker.kill('SIGHUP')
  await read
}

async function startBroker(): Promise<ChildProcess> {
  await parties.json('customer', ['keys', 'generate', 'owner.key'])
  await register(web)
  await parties.json('root', ['keys', 'generate', 'broker.key'])
  const config = {
    key: 'broker.key',
    register: 'register.json',
    state: 'state',
    socket: parties.socket('broker'),
    mode: '0666',
  }
  writeFileSync(parties.file('root', 'broker.json'), JSON.stringify(config))
  const child = parties.start('root', 'cloudapp', ['broker', '--config', 'broker.json'])
  say(`  ${await new Output(child, 'the broker').line()}`)
  return child
}

async function uuidOf(vm: Vm): Promise<string> {
  return ((await vm.monitor.execute('query-uuid')) as { UUID: string }).UUID
}

async function showClosedDoors(): Promise<void> {
  for (const party of ['sd', 'client'] as const) {
    const { stdout } = await parties.run(party, 'probe', ['open', web.ram, web.qmp])
    const answers = stdout.trim().split('\n')
    check(
      answers.length === 2 && answers.every((answer) => answer === 'EACCES'),
      `the ${party === 'sd' ? 'detector' : 'client'}'s user (uid ${UIDS[party]}) can open neither RAM file nor QMP socket: ${answers.join(', ')}`,
    )
  }
}

async function startDetector(): Promise<Detector> {
  const { publicKey } = await parties.json<{ publicKey: string }>('sd', ['keys', 'generate', 'sd.key'])
  const child = parties.start('sd', 'ids', [
    ...['--manifest', `${parties.folder}/app/cloudapp.json`, '--key', 'sd.key', '--broker', parties.socket('broker')],
    ...['--listen', parties.socket('ids'), '--store', 'findings.db', '--inbox', 'inbox'],
    ...['--client', `${UIDS.client}=${await uuidOf(web)}`, '--client', `${UIDS.customer}=all`],
  ])
  const output = new Output(child, 'the detector')
  say(`  ${await output.line()}, as uid ${UIDS.sd}; its key is ${publicKey}`)
  return {
    key: publicKey,
    output,
    async stop() {
      child.kill('SIGTERM')
      await new Promise((resolve) => child.once('close', resolve))
    },
  }
}

async function delegate(vm: string, file: string): Promise<Delegated> {
  const granted = await parties.json<Delegated & { token: string }>('customer', [
    ...['delegate', '--broker', parties.socket('broker'), '--key', 'owner.key', '--vm', vm],
    ...['--to', detector.key, '--rights', RIGHTS, '--expires', '10m'],
  ])
  // Handed over as any secretless file may be: without the detector's private key it is of no use.
  parties.handOver('sd', `inbox/${file}`, granted.token)
  return granted
}

function holder(token: string): string[] {
  return ['sd.key', `inbox/${token}`]
}

async function showFindings(): Promise<void> {
  say(`  ${await detector.output.line('attached')}`)
  const args = ['--endpoint', parties.socket('ids')]
  const scanned = await parties.run('client', 'client', [...args, '--scan', '1', '--vm', 'web-1'])
  check(scanned.code === 0, `the client (uid ${UIDS.client}) asked for a scan and waited for it`, scanned)
  say('')
  say(scanned.stdout)
  const { stdout } = await parties.run('client', 'client', [...args, '--json'])
  const findings: { class_uid: number; finding_info: { title: string } }[] = JSON.parse(stdout)
  const titles = findings.map((finding) => finding.finding_info.title)
  check(
    findings.every((finding) => finding.class_uid === 2004),
    `as OCSF: ${findings.length} Detection Findings (class 2004), by client --json`,
  )
  for (const [what, pattern] of [
    ['the hidden process', /^Hidden process \d+ \(sh\)/],
    ['the hidden module', /^Hidden kernel module shade/],
    ['the call diverted by ftrace', /getdents64 is diverted by ftrace at __x64_sys_getdents64\+0x\w+ to \[shade\]\+0x/],
    [
      'the call diverted by a patched instruction',
      /kill is diverted by a patched jump at __x64_sys_kill\+0x\w+ to \[shade\]\+0x/,
    ],
  ] as const) {
    const title = titles.find((text) => pattern.test(text))
    check(title !== undefined, `${what}: ${title}`, { titles })
  }
  check(findings.length === 4, 'and nothing else')
}

async function showAudited(action: string): Promise<void> {
  const { stdout } = await parties.run('root', 'cloudapp', [
    'audit',
    'show',
    'state/audit.log',
    '--refused',
    '--action',
    action,
  ])
  const record = stdout.split('\n').find((text) => text.includes(action))
  check(record !== undefined, 'and the attempt is on the audit log:', { stdout })
  indent(record ?? '')
}

async function scanBusy(busy: BusyVm): Promise<void> {
  await delegate('busy-1', 'busy-1.token')
  say(`  ${await detector.output.line('attached')}`)
  const before = await busy.counts()
  const scans = ['--endpoint', parties.socket('ids'), '--scan', String(SCANS), '--vm', 'busy-1', '--json']
  const { code, stdout, stderr } = await parties.run('customer', 'client', scans)
  const after = await busy.counts()
  check(code === 0, `${SCANS} scans done`, { stdout, stderr })
  indent(
    `meanwhile in the VM: ${Object.entries(after)
      .map(([load, count]) => `${load} ${count - before[load as keyof typeof before]}`)
      .join(', ')}`,
  )
  const findings: unknown[] = JSON.parse(stdout)
  check(findings.length === 0, `findings: ${findings.length}`, findings)
}

async function revoke({ blockId }: Delegated): Promise<void> {
  const witness = parties.start('sd', 'probe', ['outlive', parties.socket('broker'), ...holder('web-1.token')])
  const output = new Output(witness, 'the detector')
  const found = await output.line()
  check(/^found [1-9]/.test(found), `before: a scan works (${found})`)
  const revoked = await parties.run('customer', 'cloudapp', [
    'revoke',
    '--broker',
    parties.socket('broker'),
    '--key',
    'owner.key',
    blockId,
  ])
  check(revoked.code === 0, `revoked: ${revoked.stdout.trim()}`, revoked)
  witness.stdin?.write('\n')
  const next = await output.line()
  check(next === 'ERR_CLOUDAPP_REVOKED', `after: the next scan fails with ${next}`)
  say(`  ${await detector.output.line('web-1 ended')}`)
  const again = await parties.run('sd', 'probe', ['overreach', parties.socket('broker'), ...holder('web-1.token')])
  check(again.stderr.includes('ERR_CLOUDAPP_REVOKED'), 'and the token is worth nothing any more', again)
}

async function verifyAudit(): Promise<void> {
  const key = parties.file('root', 'broker.key.pub')
  const log = parties.file('root', 'state/audit.log')
  const head = parties.file('customer', 'audit.head')
  await parties.json('customer', [
    'audit',
    'head',
    '--broker',
    parties.socket('broker'),
    '--key',
    'owner.key',
    '--out',
    'audit.head',
  ])
  const verify = (file: string) =>
    parties.run('root', 'cloudapp', ['audit', 'verify', file, '--broker-key', key, '--head', head])
  const sound = await verify(log)
  check(sound.code === 0, `it verifies against the head the customer holds: ${sound.stdout.split('\n')[0]}`, sound)

  const changed = parties.file('root', 'changed.log')
  copyFileSync(log, changed)
  const bytes = readFileSync(changed)
  const at = bytes.indexOf('memory.write')
  bytes[at] = 'M'.charCodeAt(0)
  writeFileSync(changed, bytes)
  const broken = await verify(changed)
  check(broken.code === 1, `with one byte changed it does not: ${broken.stderr.trim().split('\n')[0]}`, broken)

  const cut = parties.file('root', 'cut.log')
  copyFileSync(log, cut)
  // The last two records the customer's head is about, and all behind them. A line is a record.
  const { seq }: { seq: number } = JSON.parse(readFileSync(head, 'utf8'))
  const lines = readFileSync(cut, 'utf8').split('\n')
  writeFileSync(cut, `${lines.slice(0, seq - 2).join('\n')}\n`)
  const short = await verify(cut)
  check(short.code === 1, `with its end cut off it does not: ${short.stderr.trim().split('\n')[0]}`, short)
}
