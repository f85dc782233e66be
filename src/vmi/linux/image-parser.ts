import { randomBytes } from 'node:crypto'
import { CloudAppError } from '../../errors.js'
import { type CallOptions, type GuestMemory, PHYSICAL, type Space } from '../memory.js'
import { sha256 } from './cache.js'
import type { Image } from './choose.js'
import type { ParseJob } from './parser/image.js'
import { type ParserAnswer, type ParserOptions, ParserProcess } from './parser-process.js'
import { decodeImage, encodeImage, IMAGE_SIZE, KERNEL_MAP } from './profile.js'
import type { Vmcoreinfo } from './vmcoreinfo.js'

/** "0\0" … "9\0": ten tokens of every kallsyms token table. */
const DIGITS = Buffer.from([...'0123456789'].map((digit) => `${digit}\0`).join(''), 'latin1')
/** Places with that shape that are tried. */
const MAX_DIGITS = 64
/** What is served around a token table when only physical positions are known. */
const REACH = 128n * 1024n * 1024n
const STEP = 2n * 1024n * 1024n

/** An image as the parser process made it, and where `_text` is: a virtual address, or a physical one. */
export interface ParsedAt {
  readonly image: Image
  readonly sections: ReadonlyMap<string, Uint8Array>
  readonly text: bigint
}

/** Where tokens with the shape of a token table lie. */
export async function findDigits(
  memory: GuestMemory,
  space: Space,
  start: bigint,
  end: bigint,
  call: CallOptions,
): Promise<bigint[]> {
  const result = await memory.search({ space, start, end, patterns: [DIGITS], limit: MAX_DIGITS }, call)
  return result.matches.map(({ at }) => at)
}

/** Has kernel images parsed, each by a process of its own that is shown nothing of the guest but the image. */
export class ImageParser {
  readonly #memory: GuestMemory
  readonly #options: ParserOptions
  readonly #call: CallOptions
  #spare: ParserProcess | undefined

  constructor(memory: GuestMemory, options: ParserOptions) {
    this.#memory = memory
    this.#options = options
    this.#call = options.signal === undefined ? {} : { signal: options.signal }
  }

  /** Starts a process ahead of its work. */
  prepare(): void {
    this.#spare ??= ParserProcess.start(this.#options)
  }

  /** Ends a process that was prepared and not needed. */
  close(): void {
    this.#spare?.close()
    this.#spare = undefined
  }

  /** Has the image parsed through the kernel's own mapping of itself. @throws ERR_CLOUDAPP_PROFILE */
  async parseVirtual(space: Space, info: Vmcoreinfo | undefined): Promise<ParsedAt> {
    const position = (name: string): number | undefined => {
      const at = info?.symbol(name)
      return at !== undefined && at >= KERNEL_MAP && at < KERNEL_MAP + IMAGE_SIZE ? Number(at - KERNEL_MAP) : undefined
    }
    const numSyms = position('kallsyms_num_syms')
    const names = position('kallsyms_names')
    const tokenTable = position('kallsyms_token_table')
    const tokenIndex = position('kallsyms_token_index')
    const offsets = position('kallsyms_offsets')
    const relativeBase = position('kallsyms_relative_base')
    const common = { size: Number(IMAGE_SIZE), virtual: KERNEL_MAP.toString(), seed: randomBytes(4).readUInt32LE() }
    const named =
      numSyms !== undefined &&
      names !== undefined &&
      tokenTable !== undefined &&
      tokenIndex !== undefined &&
      offsets !== undefined
    const tables = named
      ? { numSyms, names, tokenTable, tokenIndex, offsets, ...(relativeBase === undefined ? {} : { relativeBase }) }
      : undefined
    const places = named ? [] : await findDigits(this.#memory, space, KERNEL_MAP, KERNEL_MAP + IMAGE_SIZE, this.#call)
    const digits = places.map((at) => Number(at - KERNEL_MAP))
    const job: ParseJob = tables === undefined ? { ...common, digits } : { ...common, digits, tables }
    return this.#run(job, space, KERNEL_MAP)
  }

  /** Has the image around a token table parsed, of which only the physical place is known. @throws ERR_CLOUDAPP_PROFILE */
  async parsePhysical(digits: bigint): Promise<ParsedAt> {
    const low = digits > REACH ? digits - REACH : 0n
    const base = low - (low % STEP)
    const end = digits + REACH < this.#memory.end ? digits + REACH : this.#memory.end
    const seed = randomBytes(4).readUInt32LE()
    return this.#run({ size: Number(end - base), digits: [Number(digits - base)], seed }, PHYSICAL, base)
  }

  async #run(job: ParseJob, space: Space, base: bigint): Promise<ParsedAt> {
    const parser = this.#spare ?? ParserProcess.start(this.#options)
    this.#spare = undefined
    const answer = await parser.parse(job, async (at, length) => {
      const [result] = await this.#memory.read([{ space, at: base + BigInt(at), length }], this.#call)
      if (result === undefined) throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', 'the source answered no result')
      return result.bytes
    })
    return adopt(answer, base, job.size)
  }
}

/** Takes the parser's answer: its shape is checked as that of a file or a peer is. */
function adopt(answer: ParserAnswer, base: bigint, size: number): ParsedAt {
  const sections = new Map([
    ['symbols', answer.symbols],
    ['types', answer.types],
  ])
  const { buildId, buildIdOffset, release, symbols, fields, textPosition } = answer.image
  if (!Number.isInteger(textPosition) || textPosition < 0 || textPosition >= size)
    throw new CloudAppError('ERR_CLOUDAPP_PROFILE', 'kernel profile: _text: it is placed outside the image', {
      details: { part: '_text' },
    })
  const list = [...sections].map(([name, bytes]) => ({
    name,
    size: bytes.length,
    sha256: sha256(bytes).toString('hex'),
  }))
  const facts = decodeImage(encodeImage({ buildId, buildIdOffset, release, symbols, fields, sections: list }))
  const image = { facts, section: async (name: string) => sections.get(name) }
  return { image, sections, text: base + BigInt(textPosition) }
}
