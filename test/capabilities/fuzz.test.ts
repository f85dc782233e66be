import { expect, test } from 'vitest'
import { fuzz } from './fuzz.js'

// `CLOUDAPP_FUZZ_INPUTS=1000000 npx vitest run --project unit test/capabilities/fuzz.test.ts` runs the long form;
// `CLOUDAPP_FUZZ_SEED` repeats a run.
const inputs = Number(process.env.CLOUDAPP_FUZZ_INPUTS ?? 20_000)
const seed = Number(process.env.CLOUDAPP_FUZZ_SEED ?? Date.now() % 2 ** 31)

test(`decoding and verifying ${inputs} bent tokens (seed ${seed})`, { timeout: 60_000 + inputs }, () => {
  const { refused, verified } = fuzz(inputs, seed)
  // The run reached each kind of check, and not only the first.
  for (const reason of ['malformed', 'widening', 'signature', 'owner', 'vm', 'audience']) {
    expect(refused.get(`ERR_CLOUDAPP_TOKEN ${reason}`) ?? 0, reason).toBeGreaterThan(0)
  }
  expect(verified).toBeGreaterThan(0)
})
