/** One line of the report. */
export interface Measurement {
  readonly name: string
  readonly value: number
  readonly unit: string
  readonly note: string
}

/** The middle one. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b)
  return sorted[sorted.length >> 1] ?? Number.NaN
}

/** Milliseconds of one run. */
export async function time(run: () => Promise<unknown> | unknown): Promise<number> {
  const start = performance.now()
  await run()
  return performance.now() - start
}

/** Milliseconds of each of `rounds` runs, after `warm` that do not count. */
export async function times(rounds: number, warm: number, run: () => Promise<unknown> | unknown): Promise<number[]> {
  for (let i = 0; i < warm; i++) await run()
  const each: number[] = []
  for (let i = 0; i < rounds; i++) each.push(await time(run))
  return each
}
