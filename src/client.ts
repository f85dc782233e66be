/**
 * What a client VM needs to ask service domains for findings. Loads no native code unless an endpoint asks for it.
 *
 * @module
 */
export * from './errors.js'
export * from './service/client-exports.js'
