import { expect, test } from 'vitest'
import { fuzz, shortfall } from './fuzz.js'

// The long form is a step of `npm test`: see fuzz-main.ts. `CLOUDAPP_FUZZ_SEED` repeats a run.
const inputs = Number(process.env.CLOUDAPP_FUZZ_INPUTS ?? 20_000)
const seed = Number(process.env.CLOUDAPP_FUZZ_SEED ?? Date.now() % 2 ** 31)

test(`decoding and verifying ${inputs} bent tokens (seed ${seed})`, { timeout: 60_000 + inputs }, () => {
  // The run reached each kind of check, and not only the first.
  expect(shortfall(fuzz(inputs, seed))).toBeUndefined()
})
