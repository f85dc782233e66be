/** Options every long step of the rig takes. */
export interface RigOptions {
  /** Told in plain words what a long step is doing. */
  readonly progress?: ((message: string) => void) | undefined
  /** Stops the step; what it started is ended. */
  readonly signal?: AbortSignal | undefined
}

/** Bytes of '512M', '1G', … or of a number of bytes. */
export function parseSize(size: string | number): number {
  if (typeof size === 'number') return size
  const match = /^(\d+)([KMG])$/.exec(size)
  if (!match) throw new Error(`A size is a number of bytes or like '512M', not '${size}'`)
  const unit = { K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 }[match[2] as 'K' | 'M' | 'G']
  return Number(match[1]) * unit
}
