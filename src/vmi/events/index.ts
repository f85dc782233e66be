export * from './program.js'
export * from './source.js'
