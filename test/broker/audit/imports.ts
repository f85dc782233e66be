export { KeyPair } from '../../../src/capabilities/index.js'
export { CloudAppError } from '../../../src/errors.js'
