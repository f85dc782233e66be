import { randomBytes } from 'node:crypto'
import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import type { KernelProfileParts, VcpuReader } from '../guest.js'
import { type CallOptions, type GuestMemory, PHYSICAL, type Space, virtualSpace } from '../memory.js'
import { probeBuildId, resolveBoot, translate } from './boot.js'
import { type CacheEntry, ProfileCache, sha256 } from './cache.js'
import { profileError } from './errors.js'
import type { ParseJob } from './parser/image.js'
import { type ParserAnswer, ParserProcess } from './parser-process.js'
import {
  type BootFacts,
  decodeImage,
  encodeImage,
  IMAGE_SIZE,
  type ImageFacts,
  KERNEL_MAP,
  KernelProfile,
} from './profile.js'
import { findVmcoreinfo, type Vmcoreinfo } from './vmcoreinfo.js'

export interface MakeProfileOptions {
  /** Registers, where the source has them: they tell the running kernel from a stale image of one. */
  readonly vcpus?: VcpuReader | undefined
  /** Directory of cached profiles; false for none. By default `$CLOUDAPP_CACHE`, else the user's cache directory. */
  readonly cache?: string | false
  readonly signal?: AbortSignal
  /** Milliseconds for the parser process. */
  readonly deadline?: number
  /** Another parser program; for tests of a parser that misbehaves. */
  readonly parser?: string
}

/** An image profile and its sections, wherever they come from. */
interface Image {
  readonly facts: ImageFacts
  section(name: string): Promise<Uint8Array | undefined>
}

interface Found {
  readonly image: Image
  readonly boot: BootFacts
}

/** "0\0" … "9\0": ten tokens of every kallsyms token table. */
const DIGITS = Buffer.from([...'0123456789'].map((digit) => `${digit}\0`).join(''), 'latin1')
/** Places with that shape that are tried. */
const MAX_DIGITS = 64
/** What is served around a token table when only physical positions are known. */
const REACH = 128n * 1024n * 1024n
const STEP = 2n * 1024n * 1024n

/**
 * Makes the kernel profile of the VM whose memory this is; what {@link GuestVm.kernel} of a source returns. Looks first
 * for the kernels in the cache, then for VMCOREINFO, then for kallsyms by its shape. The guest's tables are parsed by a
 * process without rights.
 * @throws ERR_CLOUDAPP_PROFILE naming the part that is missing and where it was looked for; ERR_CLOUDAPP_ABORTED
 */
export async function makeKernelProfile(
  memory: GuestMemory,
  options: MakeProfileOptions = {},
): Promise<KernelProfileParts> {
  checkOptions('makeKernelProfile', options, ['vcpus', 'cache', 'signal', 'deadline', 'parser'])
  const search = new KernelSearch(memory, options)
  const { image, boot } = await search.find()
  const profile = new KernelProfile(image.facts, boot)
  const sections = new Map<string, Promise<Uint8Array>>()
  const section = (name: string): Promise<Uint8Array> => {
    let bytes = sections.get(name)
    if (bytes === undefined) {
      bytes = image.section(name).then((found) => found ?? search.again(profile, name))
      bytes.catch(() => sections.delete(name))
      sections.set(name, bytes)
    }
    return bytes
  }
  return { header: profile.encode(), section }
}

class KernelSearch {
  readonly #memory: GuestMemory
  readonly #options: MakeProfileOptions
  readonly #call: CallOptions
  readonly #cache: ProfileCache | undefined
  /** What was tried and why it was not it. */
  readonly #notes: string[] = []
  #parserError: unknown

  constructor(memory: GuestMemory, options: MakeProfileOptions) {
    this.#memory = memory
    this.#options = options
    this.#call = options.signal === undefined ? {} : { signal: options.signal }
    this.#cache = options.cache === false ? undefined : new ProfileCache(options.cache)
  }

  async find(): Promise<Found> {
    const cached = await this.#fromCache()
    if (cached !== undefined) return cached
    // The parser comes up while memory is searched.
    const spare = this.#start()
    try {
      let found = await this.#fromVmcoreinfo(spare, false)
      // A kernel that was found but lacks a part lacks it however else it is found.
      if (found === undefined && this.#parserError === undefined) found = await this.#fromVmcoreinfo(spare, true)
      if (found === undefined && this.#parserError === undefined) found = await this.#byShape(spare)
      if (found !== undefined) return found
    } finally {
      spare.close()
    }
    if (this.#parserError !== undefined) throw this.#parserError
    throw profileError(
      'kernel',
      `no Linux kernel found in ${this.#memory.end} bytes of RAM: ${this.#notes.join('; ') || 'nothing looks like one'}`,
      { details: { lookedIn: [`RAM 0x0…0x${this.#memory.end.toString(16)}`, ...this.#notes] } },
    )
  }

  /** Makes the sections anew when a cached one is gone or damaged. */
  async again(profile: KernelProfile, name: string): Promise<Uint8Array> {
    const { image, boot } = profile
    const answer = await this.#parseVirtual(this.#start(), profile.space, undefined)
    if (answer.image.release !== image.release || answer.image.symbols.init_task !== image.symbols.init_task)
      throw profileError(name, `the kernel at 0x${boot.physicalBase.toString(16)} is not ${image.release} any more`)
    return name === 'symbols' ? answer.symbols : answer.types
  }

  #start(): ParserProcess {
    const { signal, deadline, parser } = this.#options
    return ParserProcess.start({ signal, deadline, script: parser })
  }

  #note(text: string): void {
    if (this.#notes.length < 16) this.#notes.push(text)
  }

  async #fromCache(): Promise<Found | undefined> {
    const cache = this.#cache
    if (cache === undefined) return undefined
    for (const entry of await cache.list()) {
      const places = await probeBuildId(
        this.#memory,
        Buffer.from(entry.buildId, 'hex'),
        entry.buildIdOffset,
        this.#call,
      )
      if (places.length === 0) continue
      const image = await this.#cachedImage(cache, entry)
      if (image === undefined) continue
      const boot = await this.#live(image.facts, places)
      if (boot !== undefined) return { image, boot }
    }
    return undefined
  }

  async #cachedImage(cache: ProfileCache, entry: CacheEntry): Promise<Image | undefined> {
    const facts = await cache.load(entry)
    if (facts === undefined) return undefined
    return {
      facts,
      section: async (name) => {
        const info = facts.sections.find((section) => section.name === name)
        if (info === undefined) throw profileError(name, `a profile has no section "${name}"`)
        return cache.section(entry, info)
      },
    }
  }

  /** The one place of several where the image is at work: the one a vCPU's page table maps, if registers are at hand. */
  async #live(facts: ImageFacts, places: readonly bigint[]): Promise<BootFacts | undefined> {
    const boots: BootFacts[] = []
    for (const place of places) {
      const result = await resolveBoot(this.#memory, facts, place, this.#call)
      if ('boot' in result) boots.push(result.boot)
      else this.#note(`the image of ${facts.release} at physical 0x${place.toString(16)}: ${result.reason}`)
    }
    if (boots.length < 2) return boots[0]
    return (await this.#running(boots)) ?? (await this.#latest(facts, boots))
  }

  async #running(boots: readonly BootFacts[]): Promise<BootFacts | undefined> {
    const { vcpus } = this.#options
    if (vcpus === undefined) return undefined
    for (const { cr3 } of await vcpus.registers(this.#call)) {
      if (cr3 === undefined) continue
      for (const boot of boots) {
        const at = await translate(this.#memory, virtualSpace(cr3, boot.levels), boot.textBase, this.#call)
        if (at === boot.physicalBase) return boot
      }
    }
    return undefined
  }

  /** Of several complete kernels in RAM (a reboot leaves the old one behind), the one whose clock is furthest. */
  async #latest(facts: ImageFacts, boots: readonly BootFacts[]): Promise<BootFacts | undefined> {
    const clock = facts.symbols.tk_core
    if (typeof clock !== 'number') return boots[0]
    let best: { boot: BootFacts; time: bigint } | undefined
    for (const boot of boots) {
      // struct { seqcount; struct timekeeper } tk_core: a word that only grows stands within its first 256 bytes.
      const seconds = facts.fields['timekeeper.xtime_sec']
      const at = boot.physicalBase + BigInt(clock) + 8n + BigInt(seconds?.[0] ?? 0)
      const [result] = await this.#memory.read([{ space: PHYSICAL, at, length: 8 }], this.#call)
      const time = result === undefined ? 0n : Buffer.from(result.bytes).readBigUInt64LE()
      if (best === undefined || time > best.time) best = { boot, time }
    }
    return best?.boot
  }

  async #fromVmcoreinfo(spare: ParserProcess, unaligned: boolean): Promise<Found | undefined> {
    let parser: ParserProcess | undefined = spare
    let copies = 0
    const rejected: string[] = []
    for await (const info of findVmcoreinfo(this.#memory, { unaligned, signal: this.#options.signal })) {
      copies++
      const space = await this.#spaceOf(info)
      if (space === undefined) {
        if (rejected.length < 4)
          rejected.push(`0x${info.at.toString(16)} (${info.release}): its page table is not there`)
        continue
      }
      try {
        parser ??= this.#start()
        const answer = await this.#parseVirtual(parser, space, info)
        parser = undefined
        const image = this.#adopt(answer)
        const position = answer.image.textPosition
        const text =
          position === null
            ? undefined
            : await translate(this.#memory, space, KERNEL_MAP + BigInt(position), this.#call)
        if (text === undefined) throw profileError('_text', 'kallsyms places it where the page table maps nothing')
        const result = await resolveBoot(this.#memory, image.facts, text, this.#call)
        if ('boot' in result) return { image: await this.#keep(image, answer), boot: result.boot }
        throw profileError('kernel', `VMCOREINFO at 0x${info.at.toString(16)}: ${result.reason}`)
      } catch (error) {
        if (!CloudAppError.is(error, 'ERR_CLOUDAPP_PROFILE')) throw error
        parser = undefined
        this.#parserError ??= error
      }
    }
    this.#note(
      `VMCOREINFO (${unaligned ? 'anywhere' : 'at a page start'}): ${copies} copies${rejected.map((text) => `; ${text}`).join('')}`,
    )
    return undefined
  }

  /** The space VMCOREINFO describes, if its page table maps the kernel's text where it says. */
  async #spaceOf(info: Vmcoreinfo): Promise<Space | undefined> {
    const root = info.symbol('swapper_pg_dir') ?? info.symbol('init_top_pgt')
    const physBase = info.number('phys_base')
    const text = info.symbol('_stext')
    if (root === undefined || physBase === undefined || text === undefined) return undefined
    if (root < KERNEL_MAP || text < KERNEL_MAP) return undefined
    const physical = root - KERNEL_MAP + physBase
    if (physical < 0n || physical >= this.#memory.end) return undefined
    const levels = info.number('pgtable_l5_enabled') === 1n ? 5 : 4
    const space = virtualSpace(physical, levels)
    const at = await translate(this.#memory, space, text, this.#call)
    return at === text - KERNEL_MAP + physBase ? space : undefined
  }

  /** Has the image parsed through the kernel's own mapping of itself. */
  async #parseVirtual(parser: ParserProcess, space: Space, info: Vmcoreinfo | undefined): Promise<ParserAnswer> {
    const position = (name: string): number | undefined => {
      const at = info?.symbol(name)
      return at !== undefined && at >= KERNEL_MAP && at < KERNEL_MAP + IMAGE_SIZE ? Number(at - KERNEL_MAP) : undefined
    }
    const tables = {
      numSyms: position('kallsyms_num_syms'),
      names: position('kallsyms_names'),
      tokenTable: position('kallsyms_token_table'),
      tokenIndex: position('kallsyms_token_index'),
      offsets: position('kallsyms_offsets'),
    }
    const named = Object.values(tables).every((at) => at !== undefined)
    const relativeBase = position('kallsyms_relative_base')
    const digits = named ? [] : await this.#digits(space, KERNEL_MAP, KERNEL_MAP + IMAGE_SIZE)
    const job: ParseJob = {
      size: Number(IMAGE_SIZE),
      digits: digits.map((at) => Number(at - KERNEL_MAP)),
      virtual: KERNEL_MAP.toString(),
      seed: randomBytes(4).readUInt32LE(),
      ...(named
        ? {
            tables: {
              ...(tables as Required<{ [K in keyof typeof tables]: number }>),
              ...(relativeBase === undefined ? {} : { relativeBase }),
            },
          }
        : {}),
    }
    return parser.parse(job, (at, length) => this.#serve(space, KERNEL_MAP + BigInt(at), length))
  }

  async #digits(space: Space, start: bigint, end: bigint): Promise<bigint[]> {
    const result = await this.#memory.search({ space, start, end, patterns: [DIGITS], limit: MAX_DIGITS }, this.#call)
    return result.matches.map(({ at }) => at)
  }

  async #serve(space: Space, at: bigint, length: number): Promise<Uint8Array> {
    const [result] = await this.#memory.read([{ space, at, length }], this.#call)
    if (result === undefined) throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'the source answered no result')
    return result.bytes
  }

  /** No VMCOREINFO: kallsyms' token table anywhere in RAM, and the image around it. */
  async #byShape(spare: ParserProcess): Promise<Found | undefined> {
    let parser: ParserProcess | undefined = spare
    const digits = await this.#digits(PHYSICAL, 0n, this.#memory.end)
    this.#note(`kallsyms token table: ${digits.length} places have its shape`)
    for (const match of digits) {
      const low = match > REACH ? match - REACH : 0n
      const base = low - (low % STEP)
      const end = match + REACH < this.#memory.end ? match + REACH : this.#memory.end
      const job: ParseJob = {
        size: Number(end - base),
        digits: [Number(match - base)],
        seed: randomBytes(4).readUInt32LE(),
      }
      try {
        parser ??= this.#start()
        const answer = await parser.parse(job, (at, length) => this.#serve(PHYSICAL, base + BigInt(at), length))
        parser = undefined
        const image = this.#adopt(answer)
        const { textPosition } = answer.image
        if (textPosition === null) continue
        const boot = await resolveBoot(this.#memory, image.facts, base + BigInt(textPosition), this.#call)
        if ('boot' in boot) return { image: await this.#keep(image, answer), boot: boot.boot }
        this.#note(`the image of ${image.facts.release} around physical 0x${match.toString(16)}: ${boot.reason}`)
      } catch (error) {
        if (!CloudAppError.is(error, 'ERR_CLOUDAPP_PROFILE')) throw error
        parser = undefined
        const part = String(error.details?.part)
        // Ten digits in a row stand in other places too: those are not worth an error.
        if (part.startsWith('kallsyms')) this.#note(`at physical 0x${match.toString(16)}: ${error.message}`)
        else this.#parserError ??= error
      }
    }
    return undefined
  }

  /** Takes the parser's answer: its shape is checked as that of a file or a peer is. */
  #adopt(answer: ParserAnswer): Image {
    const sections = new Map([
      ['symbols', answer.symbols],
      ['types', answer.types],
    ])
    const { buildId, buildIdOffset, release, symbols, fields } = answer.image
    const facts = decodeImage(
      encodeImage({
        buildId,
        buildIdOffset,
        release,
        symbols,
        fields,
        sections: [...sections].map(([name, bytes]) => ({
          name,
          size: bytes.length,
          sha256: sha256(bytes).toString('hex'),
        })),
      }),
    )
    return { facts, section: async (name) => sections.get(name) }
  }

  async #keep(image: Image, answer: ParserAnswer): Promise<Image> {
    await this.#cache?.save(
      image.facts,
      new Map([
        ['symbols', answer.symbols],
        ['types', answer.types],
      ]),
    )
    return image
  }
}
