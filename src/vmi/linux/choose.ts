import type { VcpuReader } from '../guest.js'
import { type CallOptions, type GuestMemory, PHYSICAL, virtualSpace } from '../memory.js'
import { translate } from './boot.js'
import type { BootFacts, ImageFacts } from './profile.js'
import { walkSteadily } from './walks.js'

/** A kernel image, wherever its sections come from. */
export interface Image {
  readonly facts: ImageFacts
  section(name: string): Promise<Uint8Array | undefined>
}

/** A kernel image, and where it is at work. */
export interface Found {
  readonly image: Image
  readonly boot: BootFacts
}

/** Tasks walked to see whether the list returns to its head. */
const MAX_TASKS = 1_048_576

function physicalOf({ image, boot }: Found, symbol: string): bigint | undefined {
  const value = image.facts.symbols[symbol]
  return typeof value === 'number' ? boot.physicalBase + BigInt(value) : undefined
}

async function word({ at, memory, call }: { at: bigint | undefined; memory: GuestMemory; call: CallOptions }) {
  if (at === undefined) return undefined
  const [result] = await memory.read([{ space: PHYSICAL, at, length: 8 }], call)
  return result === undefined || result.faults.length > 0 ? undefined : Buffer.from(result.bytes).readBigUInt64LE()
}

/** The kernel's count of timer ticks: what changes between two looks is alive. */
export function ticks(memory: GuestMemory, found: Found, call: CallOptions): Promise<bigint | undefined> {
  return word({ at: physicalOf(found, 'jiffies_64'), memory, call })
}

/**
 * True if the kernel's task list is whole. One left behind by a reboot rarely is: its tasks lay in memory that the next
 * kernel uses. A rootkit may break it too, so this is a preference and no condition.
 */
export async function isSound(memory: GuestMemory, { image, boot }: Found): Promise<boolean> {
  const task = image.facts.symbols.init_task
  const tasks = image.facts.fields['task_struct.tasks']
  if (typeof task !== 'number' || !tasks) return false
  const head = boot.textBase + BigInt(task) + BigInt(tasks[0])
  const space = virtualSpace(boot.root, boot.levels)
  const plan = { kind: 'list', space, head, node: tasks[0], columns: [], limit: MAX_TASKS } as const
  const [walk] = await walkSteadily(memory, [plan])
  return walk?.end === 'complete' && walk.rows > 0
}

/**
 * Of several complete kernels in RAM (a reboot leaves the old one behind), the one that runs: whose task list is whole;
 * that a vCPU's page table maps, where registers are at hand; whose clock is furthest.
 */
export async function choose(
  memory: GuestMemory,
  found: readonly Found[],
  vcpus: VcpuReader | undefined,
  call: CallOptions,
): Promise<{ readonly found: Found; readonly sound: boolean } | undefined> {
  const sound: Found[] = []
  for (const candidate of found) if (await isSound(memory, candidate)) sound.push(candidate)
  const pool = sound.length > 0 ? sound : found
  const [first] = pool
  if (first === undefined) return undefined
  const chosen =
    pool.length === 1 ? first : ((await running(memory, pool, vcpus, call)) ?? (await latest(memory, pool, call)))
  return { found: chosen ?? first, sound: sound.length > 0 }
}

async function running(
  memory: GuestMemory,
  found: readonly Found[],
  vcpus: VcpuReader | undefined,
  call: CallOptions,
): Promise<Found | undefined> {
  if (vcpus === undefined) return undefined
  for (const { cr3 } of await vcpus.registers(call)) {
    if (cr3 === undefined) continue
    // With page-table isolation, user space runs on the root one page above the kernel's: PTI_USER_PGTABLE_BIT,
    // arch/x86/include/asm/pgtable.h.
    for (const root of [cr3, cr3 & ~0x1000n]) {
      for (const candidate of found) {
        const { boot } = candidate
        const at = await translate(memory, virtualSpace(root, boot.levels), boot.textBase, call)
        if (at === boot.physicalBase) return candidate
      }
    }
  }
  return undefined
}

async function latest(memory: GuestMemory, found: readonly Found[], call: CallOptions): Promise<Found | undefined> {
  let best: { candidate: Found; time: bigint } | undefined
  for (const candidate of found) {
    // struct { seqcount; struct timekeeper; … } tk_core; its type has a name since 6.13, and it is the first of
    // timekeeper_data[] since 6.17.
    const clock = physicalOf(candidate, 'tk_core') ?? physicalOf(candidate, 'timekeeper_data')
    const { fields } = candidate.image.facts
    const seconds = fields['timekeeper.xtime_sec']
    const timekeeper = BigInt(fields['tk_data.timekeeper']?.[0] ?? 8)
    const at = clock === undefined || !seconds ? undefined : clock + timekeeper + BigInt(seconds[0])
    const time = (await word({ at, memory, call })) ?? 0n
    if (best === undefined || time > best.time) best = { candidate, time }
  }
  return best?.candidate
}
