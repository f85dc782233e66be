export * from './capabilities/index.js'
export * from './errors.js'
export * from './transport/index.js'
export * from './vmi/index.js'
