import { CloudAppError } from '../../errors.js'
import type { VcpuReader } from '../guest.js'
import { type CallOptions, type GuestMemory, PHYSICAL, type Space, virtualSpace } from '../memory.js'
import { probeBuildId, resolveBoot, translate } from './boot.js'
import { type CacheEntry, ProfileCache } from './cache.js'
import { choose, type Found, type Image, ticks } from './choose.js'
import { profileError } from './errors.js'
import { findDigits, ImageParser, type ParsedAt } from './image-parser.js'
import { KERNEL_MAP } from './profile.js'
import { findVmcoreinfo, type Vmcoreinfo } from './vmcoreinfo.js'

export interface KernelSearchOptions {
  readonly vcpus?: VcpuReader | undefined
  readonly cache?: string | false
  readonly signal?: AbortSignal
  readonly deadline?: number
  readonly parser?: string
}

/** Different kernels VMCOREINFO texts lead to that are parsed: a guest may plant them. */
const MAX_SPACES = 8

/** A kernel a VMCOREINFO text leads to. */
interface Lead {
  readonly info: Vmcoreinfo
  readonly space: Space
}

/** Finds the kernel that runs in a VM, and has its image parsed if the cache does not know it. */
export class KernelSearch {
  readonly parser: ImageParser
  readonly #memory: GuestMemory
  readonly #vcpus: VcpuReader | undefined
  readonly #call: CallOptions
  readonly #cache: ProfileCache | undefined
  /** What was tried and why it was not it. */
  readonly #notes: string[] = []
  /** The first thing found wrong with a kernel that was found. */
  #wrong: CloudAppError | undefined

  constructor(memory: GuestMemory, options: KernelSearchOptions) {
    const { signal, deadline, parser, cache, vcpus } = options
    this.#memory = memory
    this.#vcpus = vcpus
    this.#call = signal === undefined ? {} : { signal }
    this.#cache = cache === false ? undefined : new ProfileCache(cache)
    this.parser = new ImageParser(memory, { signal, deadline, script: parser })
  }

  /** @throws ERR_CLOUDAPP_PROFILE naming the part that is missing and where it was looked for */
  async find(): Promise<Found> {
    const cached = await this.#choose(await this.#fromCache())
    if (cached?.sound) return cached.found
    // The parser comes up while memory is searched.
    this.parser.prepare()
    try {
      let found = await this.#choose(await this.#fromVmcoreinfo(false))
      // A kernel that was found but lacks a part lacks it however else it is found.
      const more = () => found === undefined && cached === undefined && this.#wrong === undefined
      if (more()) found = await this.#choose(await this.#fromVmcoreinfo(true))
      if (more()) found = await this.#choose(await this.#byShape())
      const best = found?.sound ? found : (cached ?? found)
      if (best !== undefined) return best.found
    } finally {
      this.parser.close()
    }
    if (this.#wrong !== undefined) throw this.#wrong
    const end = this.#memory.end
    throw profileError('kernel', `no Linux kernel found in ${end} bytes of RAM: ${this.#notes.join('; ')}`, {
      details: { lookedIn: [`RAM 0x0…0x${end.toString(16)}`, ...this.#notes] },
    })
  }

  #choose(found: readonly Found[]) {
    return choose(this.#memory, found, this.#vcpus, this.#call)
  }

  #note(text: string): void {
    if (this.#notes.length < 16) this.#notes.push(text)
  }

  /** Keeps what a parser says is wrong; anything but a missing part ends the search. */
  #failed(error: unknown): CloudAppError {
    if (!CloudAppError.is(error, 'ERR_CLOUDAPP_PROFILE')) throw error
    return error
  }

  /** Every place where a cached image is at work. */
  async #fromCache(): Promise<Found[]> {
    const cache = this.#cache
    if (cache === undefined) return []
    const found: Found[] = []
    for (const entry of await cache.list()) {
      const id = Buffer.from(entry.buildId, 'hex')
      const places = await probeBuildId(this.#memory, id, entry.buildIdOffset, this.#call)
      const image = places.length === 0 ? undefined : await this.#cachedImage(cache, entry)
      if (image === undefined) continue
      for (const place of places) {
        const result = await resolveBoot(this.#memory, image.facts, place, this.#call)
        if ('boot' in result) found.push({ image, boot: result.boot })
        else this.#note(`the image of ${image.facts.release} at physical 0x${place.toString(16)}: ${result.reason}`)
      }
    }
    return found
  }

  async #cachedImage(cache: ProfileCache, entry: CacheEntry): Promise<Image | undefined> {
    const facts = await cache.load(entry)
    if (facts === undefined) return undefined
    const section = async (name: string) => {
      const info = facts.sections.find((candidate) => candidate.name === name)
      if (info === undefined) throw profileError(name, `a profile has no section "${name}"`)
      return cache.section(entry, info)
    }
    return { facts, section }
  }

  /**
   * The kernels VMCOREINFO texts lead to. The first is parsed while the rest of RAM is searched for others; the search
   * ends early once that first one is seen to tick.
   */
  async #fromVmcoreinfo(unaligned: boolean): Promise<Found[]> {
    const leads = new Map<string, Lead>()
    let first: Promise<Found | undefined> | undefined
    let parsed: Found | undefined
    let before: bigint | undefined
    let copies = 0
    const enough = async () => {
      if (parsed === undefined) return false
      const now = await ticks(this.#memory, parsed, this.#call)
      const alive = before !== undefined && now !== undefined && now !== before
      before = now
      return alive
    }
    const search = { unaligned, enough, signal: this.#call.signal }
    try {
      for await (const info of findVmcoreinfo(this.#memory, search)) {
        copies++
        const space = await this.#spaceOf(info)
        const key = `${space} ${info.symbol('_stext')}`
        if (space === undefined || leads.has(key) || leads.size >= MAX_SPACES) continue
        leads.set(key, { info, space })
        if (first !== undefined) continue
        first = this.#follow({ info, space })
        first.then(
          (found) => {
            parsed = found
          },
          // Awaited below.
          () => {},
        )
      }
    } catch (error) {
      await first?.catch(() => {})
      throw error
    }
    this.#note(`VMCOREINFO ${unaligned ? 'anywhere' : 'at a page start'}: ${copies} copies, ${leads.size} of them true`)
    const found = [await first]
    for (const lead of [...leads.values()].slice(1)) found.push(await this.#follow(lead))
    return found.filter((entry) => entry !== undefined)
  }

  async #follow({ info, space }: Lead): Promise<Found | undefined> {
    try {
      const parsed = await this.parser.parseVirtual(space, info)
      const text = await translate(this.#memory, space, parsed.text, this.#call)
      if (text === undefined) throw profileError('_text', 'kallsyms places it where the page table maps nothing')
      const result = await resolveBoot(this.#memory, parsed.image.facts, text, this.#call)
      if ('boot' in result) return await this.#keep(parsed, result.boot)
      throw profileError('kernel', `VMCOREINFO at 0x${info.at.toString(16)}: ${result.reason}`)
    } catch (error) {
      this.#wrong ??= this.#failed(error)
      return undefined
    }
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
    const space = virtualSpace(physical, info.number('pgtable_l5_enabled') === 1n ? 5 : 4)
    const at = await translate(this.#memory, space, text, this.#call)
    if (at === text - KERNEL_MAP + physBase) return space
    this.#note(`VMCOREINFO at 0x${info.at.toString(16)} (${info.release}): its page table is not there`)
    return undefined
  }

  /** No VMCOREINFO: kallsyms' token table anywhere in RAM, and the image around it. */
  async #byShape(): Promise<Found[]> {
    const places = await findDigits(this.#memory, PHYSICAL, 0n, this.#memory.end, this.#call)
    this.#note(`kallsyms token table: ${places.length} places have its shape`)
    for (const place of places) {
      try {
        const parsed = await this.parser.parsePhysical(place)
        const result = await resolveBoot(this.#memory, parsed.image.facts, parsed.text, this.#call)
        if ('boot' in result) return [await this.#keep(parsed, result.boot)]
        this.#note(`the image of ${parsed.image.facts.release} at 0x${place.toString(16)}: ${result.reason}`)
      } catch (error) {
        const reason = this.#failed(error)
        // Ten digits in a row stand in other places too: those are not worth an error.
        if (!String(reason.details?.part).startsWith('kallsyms')) this.#wrong ??= reason
        else this.#note(`at physical 0x${place.toString(16)}: ${reason.message}`)
      }
    }
    return []
  }

  async #keep({ image, sections }: ParsedAt, boot: Found['boot']): Promise<Found> {
    await this.#cache?.save(image.facts, sections)
    return { image, boot }
  }
}
