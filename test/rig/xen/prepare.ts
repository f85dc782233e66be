// Makes what the Xen host is booted from: about five minutes once, nothing after. Ends with 1, after one line that says why, where
// it can not be made.
import { dom0Root, hypervisor } from './lib/image.js'
import { xsmXen } from './lib/xsm.js'

const progress = (message: string): void => void process.stdout.write(`${message}\n`)
try {
  await hypervisor({ progress })
  await dom0Root({ progress })
  await xsmXen({ progress })
} catch (error) {
  const [what = ''] = (error as Error).message.split('\n')
  process.stderr.write(`${(error as Error).message}\nno Xen host can be made here: ${what.slice(0, 200)}\n`)
  process.exitCode = 1
}
