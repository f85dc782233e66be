import { describe, it } from 'vitest'
import { libvmiSuite } from './libvmi-suite.js'

const library = process.env.CLOUDAPP_LIBVMI ?? ''

describe('a real LibVMI', () => {
  if (library === '')
    it('is driven as ours is', ({ skip }) => skip('CLOUDAPP_LIBVMI names no LibVMI (it is in no Debian release)'))
  else libvmiSuite(library)
})
