export * from './guest.js'
export * from './memory.js'
