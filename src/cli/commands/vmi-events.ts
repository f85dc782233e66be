import { CloudAppError } from '../../errors.js'
import type { Captures, EventProgram, Trap } from '../../vmi/events/program.js'
import type { EventBatch, EventStream } from '../../vmi/events/source.js'
import type { GuestVm } from '../../vmi/guest.js'
import { Linux } from '../../vmi/linux/linux.js'
import { integerOf } from '../arguments.js'
import { type Command, type Invocation, UsageError } from '../command.js'
import { hex } from '../output.js'
import { sourceOption, withVm } from '../vm.js'

/** Events that --json keeps for its one document. */
const MOST = 100_000

const field = (name: 'newValue' | 'oldValue' | 'leaf' | 'subleaf' | 'descriptor' | 'isWrite') => ({ field: name })
const CAPTURES: Readonly<Record<Trap['kind'], Captures>> = {
  register: { oldValue: field('oldValue'), newValue: field('newValue') },
  msr: { oldValue: field('oldValue'), newValue: field('newValue') },
  cpuid: { leaf: field('leaf'), subleaf: field('subleaf') },
  descriptor: { descriptor: field('descriptor'), isWrite: field('isWrite') },
  // The arguments of a function of the kernel: System V AMD64 ABI, 3.2.3.
  breakpoint: {
    rdi: { register: 'rdi' },
    rsi: { register: 'rsi' },
    rdx: { register: 'rdx' },
    rcx: { register: 'rcx' },
  },
  'guest-request': {},
}

export const command: Command = {
  summary: 'Watch what happens in a VM',
  help: `TRAP is cr0, cr3, cr4 (a write that changes it), cpuid, descriptor, guest-request, msr:NUMBER, or breakpoint:SYMBOL with a
symbol of the kernel or an address. Without --count it goes on until it is interrupted (with --json, to ${MOST} events).`,
  options: {
    ...sourceOption,
    trap: { type: 'string', value: 'TRAP', required: true, help: 'what to watch' },
    count: { type: 'string', value: 'N', help: 'end after so many events' },
  },
  json: true,
  run(invocation) {
    const { args, out } = invocation
    const text = args.text('count')
    const count = text === undefined ? undefined : integerOf('count', text, out.isJson ? MOST : Number.MAX_SAFE_INTEGER)
    if (count === 0) throw new UsageError('--count is at least 1')
    const word = args.need('trap')
    const trap = plainTrap(word)
    return withVm(invocation, async (vm) =>
      watch(invocation, vm, trap ?? (await breakpoint(vm, word, invocation)), count),
    )
  },
}

/** Every trap but a breakpoint, which needs the guest. */
function plainTrap(word: string): Trap | undefined {
  switch (word) {
    case 'cr0':
    case 'cr3':
    case 'cr4':
      return { kind: 'register', register: word, changed: true }
    case 'cpuid':
    case 'descriptor':
    case 'guest-request':
      return { kind: word }
  }
  if (word.startsWith('msr:')) return { kind: 'msr', msr: integerOf('trap', word.slice(4), 0xffff_ffff) }
  if (word.startsWith('breakpoint:') && word.length > 11) return undefined
  throw new UsageError(
    `--trap: '${word.slice(0, 64)}' is none of cr0, cr3, cr4, cpuid, descriptor, guest-request, msr:NUMBER, breakpoint:SYMBOL`,
  )
}

async function breakpoint(vm: GuestVm, word: string, { signal }: Invocation): Promise<Trap> {
  const where = word.slice(word.indexOf(':') + 1)
  const linux = await Linux.attach(vm, { signal })
  return linux.breakpoint(/^0x[0-9a-f]{1,16}$/i.test(where) ? BigInt(where) : where)
}

async function watch({ out, signal }: Invocation, vm: GuestVm, trap: Trap, most: number | undefined): Promise<number> {
  if (vm.events === undefined) {
    const what = `the source of ${vm.identity.name} has no events: only xen: has`
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', what, { vm: vm.identity.name })
  }
  const captures = CAPTURES[trap.kind]
  const program: EventProgram = { trap, captures }
  const stream: EventStream = await vm.events.subscribe(program)
  const stop = () => void stream.close().catch(() => {})
  signal.addEventListener('abort', stop, { once: true })
  const names = Object.keys(captures)
  const events: Record<string, bigint | number>[] = []
  let seen = 0
  try {
    const limit = most ?? (out.isJson ? MOST : Number.POSITIVE_INFINITY)
    for await (const batch of stream) {
      if (batch.dropped > 0) out.line(`(${batch.dropped} events lost)`)
      for (let row = 0; row < batch.count && seen < limit; row++, seen++) {
        const event = rowOf(batch, row, names)
        if (out.isJson) events.push(event)
        else out.line(lineOf(event, names))
      }
      if (seen >= limit) break
    }
  } finally {
    signal.removeEventListener('abort', stop)
    await stream.close()
  }
  const counts = await stream.counts()
  if (out.isJson) out.json({ trap, events, ...counts })
  else out.note(`${seen} events shown of ${counts.matched}, ${counts.dropped} lost`)
  return 0
}

function rowOf({ columns }: EventBatch, row: number, names: readonly string[]): Record<string, bigint | number> {
  const of = (name: string) => (columns as unknown as Record<string, BigUint64Array>)[name]?.[row] ?? 0n
  return {
    time: of('time'),
    vcpu: Number(of('vcpu')),
    cr3: of('cr3'),
    rip: of('rip'),
    ...Object.fromEntries(names.map((name) => [name, of(name)])),
  }
}

function lineOf(event: Record<string, bigint | number>, names: readonly string[]): string {
  const seconds = (Number(event.time) / 1e9).toFixed(6)
  const told = ['cr3', 'rip', ...names].map((name) => `${name} ${hex(BigInt(event[name] ?? 0))}`)
  return [seconds.padStart(14), `vcpu ${event.vcpu}`, ...told].join('  ')
}
