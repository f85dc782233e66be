import type { Manifest } from '../capabilities/manifest.js'
import type { ManifestChange } from '../capabilities/manifest-diff.js'
import { RIGHTS } from '../capabilities/rights.js'

/** What a manifest asks for, in plain words, a sentence each. Holds text of the publisher: escape it for a terminal. */
export function manifestWords({ title, name, version, vendor, rights, publishes, image }: Manifest): string[] {
  const words = [`${title} (${name} ${version}) by ${vendor}`]
  for (const { right, reason, optional } of rights) {
    const asks = optional === true ? 'It would like to' : 'It must be able to'
    words.push(`${asks} ${RIGHTS[right].allows} (${right}). They say: ${sentence(reason)} Risk: ${RIGHTS[right].risk}.`)
  }
  if (rights.length === 0) words.push('It asks for no right.')
  if (publishes.length > 0) words.push(`It gives out ${publishes.join(', ')}.`)
  if (image !== undefined) words.push(`It is the image ${image}.`)
  return words
}

/** The publisher's words, with the full stop that not every publisher ends them with. */
const sentence = (text: string): string => (/[.!?…]$/.test(text) ? text : `${text}.`)

/** A difference in plain words. */
export function changeWords({ what, right, before, after }: ManifestChange): string {
  switch (what) {
    case 'right-added':
      return `asks anew for ${right}: to ${right === undefined ? '' : RIGHTS[right].allows}. They say: ${after}`
    case 'right-required':
      return `does not work any more without ${right}`
    case 'right-optional':
      return `works without ${right} now`
    case 'right-removed':
      return `asks no more for ${right}`
    case 'reason':
      return `gives another reason for ${right}: ${after} (before: ${before})`
    case 'publishes-added':
      return `gives out ${after} too`
    case 'publishes-removed':
      return `gives out ${before} no more`
    default:
      return `has another ${what}: ${after ?? 'none'} (before: ${before ?? 'none'})`
  }
}
