import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { GuestMemory } from '../../src/vmi/memory.js'
import { buildImage, type ConformanceImage } from './image.js'
import { faultCases } from './memory-faults.js'
import { pagesCases } from './memory-pages.js'
import { readCases } from './memory-read.js'
import { searchCases } from './memory-search.js'
import { walkCases } from './memory-walk.js'

/** A GuestMemory over the suite's image. */
export interface Subject {
  readonly memory: GuestMemory
  /** Says that the VM stands still or runs on; leave it out where the subject can not know. */
  readonly setPaused?: (paused: boolean) => void | Promise<void>
  close(): Promise<void>
}

/** What the cases see: the subject once it is there. */
export interface Context {
  readonly memory: GuestMemory
  readonly image: ConformanceImage
  readonly subject: Subject
}

/**
 * The suite every GuestMemory must pass. `make` gives a memory over `image.ram` (offset = physical address), opened for
 * writing if the implementation can; it is called once, and once more for the cases that close it.
 */
export function memoryConformance(name: string, make: (image: ConformanceImage) => Promise<Subject>): void {
  describe(`GuestMemory: ${name}`, () => {
    const image = buildImage()
    let subject: Subject | undefined
    const context: Context = {
      image,
      get subject() {
        if (subject === undefined) throw new Error('used before the suite began')
        return subject
      },
      get memory() {
        return this.subject.memory
      },
    }
    beforeAll(async () => {
      subject = await make(image)
    })
    afterAll(async () => {
      await subject?.close()
    })

    readCases(context)
    faultCases(context)
    walkCases(context)
    pagesCases(context)
    searchCases(context)

    it('throws ERR_CLOUDAPP_CLOSED once it is closed', async () => {
      const closing = await make(buildImage())
      await closing.close()
      await expect(closing.memory.read([{ space: 0n, at: 0n, length: 1 }])).rejects.toMatchObject({
        code: 'ERR_CLOUDAPP_CLOSED',
      })
    })
  })
}
