import { expect, it } from 'vitest'
import { tripleFaults } from './lib/lost.js'

const dump = (domid: number, rip: string) => `(XEN) d${domid}v0: upcall vector f3
(XEN) d${domid}v0 Triple fault - invoking HVM shutdown action 1
(XEN) *** Dumping Dom${domid} vcpu#0 state: ***
(XEN) ----[ Xen-4.17.5  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    0
(XEN) RIP:    ${rip}
(XEN) RFLAGS: 0000000000000246   CONTEXT: hvm guest (d${domid}v0)`

it('finds the guests that ended in a triple fault, and knows those that the emulation alone can have lost', () => {
  const lost = dump(3, 'e008:[<ffff82d040204505>]')
  const own = dump(4, '0010:[<ffffffff81000000>]')
  const found = (console: string) => tripleFaults(console).map(({ domid, xensOwn }) => [domid, xensOwn])
  expect(found(lost)).toEqual([[3, true]])
  expect(found(`${own}\r\n${lost}\n${dump(12, 'e008:[<ffff82d040204505>]')}`)).toEqual([
    [4, false],
    [3, true],
    [12, true],
  ])
  // A guest with Xen's segment, or one of its own that is somewhere in Xen.
  expect(found(dump(5, 'e008:[<ffffffff81000000>]'))).toEqual([[5, false]])
  expect(found(dump(6, '0010:[<ffff82d040204505>]'))).toEqual([[6, false]])
  expect(found('(XEN) d7v0 crashed: something else')).toEqual([])
})
