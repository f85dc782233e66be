/** An offset farther into a function is not decided on: what is decoded from a hostile guest has a bound. */
export const MAX_OFFSET = 1 << 16

/**
 * Whether an instruction starts at an offset of a function, as its instructions follow each other from its first byte:
 * bytes inside of one can look like any other. x86-64 code of the kernel holds no data between its instructions.
 *
 * @param code the function's bytes from its first one to behind `offset`
 * @returns `undefined` if it can not be told: too far into the function, or bytes that are no instruction before it
 */
export async function startsInstruction(code: Uint8Array, offset: number): Promise<boolean | undefined> {
  if (offset === 0) return true
  if (offset > MAX_OFFSET || offset >= code.byteLength) return undefined
  // 2 MB of tables: loaded when a look has something to decide, which most have not.
  const { Decoder, DecoderOptions } = await import('iced-x86')
  const decoder = new Decoder(64, code, DecoderOptions.None)
  try {
    while (decoder.position < offset) {
      const instruction = decoder.decode()
      const { isInvalid } = instruction
      instruction.free()
      if (isInvalid) return undefined
    }
    return decoder.position === offset
  } finally {
    decoder.free()
  }
}
