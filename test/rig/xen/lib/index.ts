export { type GuestOptions, XenGuest } from './guest.js'
export { bootXen, Dom0, XenHost, type XenOptions } from './host.js'
export { APP, program } from './payload.js'
