import { expect, it } from 'vitest'
import { lostGuests } from './lib/lost.js'

const dump = (domid: number, rip: string) => `(XEN) d${domid}v0: upcall vector f3
(XEN) d${domid}v0 Triple fault - invoking HVM shutdown action 1
(XEN) *** Dumping Dom${domid} vcpu#0 state: ***
(XEN) ----[ Xen-4.17.5  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    0
(XEN) RIP:    ${rip}
(XEN) RFLAGS: 0000000000000246   CONTEXT: hvm guest (d${domid}v0)`

it('knows a guest that the emulation lost from one that lost itself', () => {
  const lost = dump(3, 'e008:[<ffff82d040204505>]')
  const own = dump(4, '0010:[<ffffffff81000000>]')
  expect(lostGuests(lost)).toEqual([3])
  expect(lostGuests(own)).toEqual([])
  expect(lostGuests(`${own}\r\n${lost}\n${dump(12, 'e008:[<ffff82d040204505>]')}`)).toEqual([3, 12])
  // A guest with Xen's segment, or one of its own that is somewhere in Xen.
  expect(lostGuests(dump(5, 'e008:[<ffffffff81000000>]'))).toEqual([])
  expect(lostGuests(dump(6, '0010:[<ffff82d040204505>]'))).toEqual([])
})
