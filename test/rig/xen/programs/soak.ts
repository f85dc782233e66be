// Attaches to a domain again and again: soak.mjs URI COUNT [WARM]. Prints what it came to, as one JSON document.
import { attachCycles } from '../../../../bench/soak/attach.js'

const [uri = '', count = '', warm] = process.argv.slice(2)
// A foreign mapping is one of Xen's device.
console.log(
  JSON.stringify(
    await attachCycles(
      'attach.xen',
      uri,
      Number(count),
      /privcmd$/,
      undefined,
      warm === undefined ? undefined : Number(warm),
    ),
  ),
)
