import type { Manifest } from './manifest.js'
import type { Right } from './rights.js'

/** One difference between two manifests. */
export interface ManifestChange {
  readonly what:
    | 'right-added'
    | 'right-required'
    | 'right-optional'
    | 'right-removed'
    | 'reason'
    | 'publisher'
    | 'name'
    | 'image'
    | 'version'
    | 'title'
    | 'vendor'
    | 'description'
    | 'publishes-added'
    | 'publishes-removed'
  /** True if the new one asks for more, or is somebody else's: not to be followed without consent. */
  readonly widens: boolean
  readonly right?: Right
  readonly before?: string
  readonly after?: string
}

/** The fields whose change matters by itself; another publisher or name is another party. */
const FIELDS = [
  ['publisher', true],
  ['name', true],
  ['version', false],
  ['image', false],
  ['title', false],
  ['vendor', true],
  ['description', false],
] as const

/** What an update changes, what widens first. Empty if the two say the same. */
export function diffManifests(before: Manifest, after: Manifest): ManifestChange[] {
  const changes: ManifestChange[] = []
  for (const [field, widens] of FIELDS) {
    if (before[field] !== after[field])
      changes.push(change(field, widens, { before: before[field], after: after[field] }))
  }
  const had = new Map(before.rights.map((asked) => [asked.right, asked]))
  const has = new Set(after.rights.map(({ right }) => right))
  for (const { right, reason, optional = false } of after.rights) {
    const old = had.get(right)
    if (old === undefined) {
      changes.push(change('right-added', true, { right, after: reason }))
      continue
    }
    const was = old.optional ?? false
    // Who refused it when it was optional is asked for it anew.
    if (was && !optional) changes.push(change('right-required', true, { right }))
    if (!was && optional) changes.push(change('right-optional', false, { right }))
    if (old.reason !== reason) changes.push(change('reason', false, { right, before: old.reason, after: reason }))
  }
  for (const { right } of before.rights) if (!has.has(right)) changes.push(change('right-removed', false, { right }))
  for (const kind of after.publishes) {
    if (!before.publishes.includes(kind)) changes.push(change('publishes-added', false, { after: kind }))
  }
  for (const kind of before.publishes) {
    if (!after.publishes.includes(kind)) changes.push(change('publishes-removed', false, { before: kind }))
  }
  return changes.sort((a, b) => Number(b.widens) - Number(a.widens))
}

function change(
  what: ManifestChange['what'],
  widens: boolean,
  more: { readonly right?: Right; readonly before?: string | undefined; readonly after?: string | undefined },
): ManifestChange {
  const { right, before, after } = more
  return {
    what,
    widens,
    ...(right === undefined ? {} : { right }),
    ...(before === undefined ? {} : { before }),
    ...(after === undefined ? {} : { after }),
  }
}
