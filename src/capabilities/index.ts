export * from './attenuate.js'
export * from './binding.js'
export { BLOCK_ID_BYTES, type BlockContent } from './block.js'
export * from './caveats.js'
export * from './clock.js'
export * from './delegation.js'
export { CAVEAT_NAMES, type CaveatName } from './dimensions.js'
export {
  beyondFlask,
  buildLabelOf,
  compileFlask,
  DIRECT_RIGHTS,
  directRights,
  type FlaskBoolean,
  type FlaskCoverage,
  type FlaskDelegation,
  type FlaskDomain,
  type FlaskInput,
  type FlaskLabel,
  type FlaskPermission,
  type FlaskPolicy,
  labelOf,
} from './flask/index.js'
export * from './inspect.js'
export * from './key-files.js'
export * from './keys.js'
export * from './make-delegation.js'
export { type Manifest, parseManifest, readManifest } from './manifest.js'
export * from './manifest-diff.js'
export * from './manifest-sign.js'
export { type MintOptions, mintToken } from './mint.js'
export * from './owners.js'
export * from './pass.js'
export * from './proof.js'
export { canonicalRanges, MAX_ADDRESS, rangesCover } from './ranges.js'
export * from './revoked-port.js'
export * from './rights.js'
export { inCgroup, processInScope } from './scope.js'
export type { Moment } from './time.js'
export { parseToken, type TokenFault, type TokenText, tokenFromText, tokenHash, tokenToText } from './token.js'
export * from './verify.js'
