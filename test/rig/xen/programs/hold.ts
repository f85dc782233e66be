// Holds a domain paused, or watches it, until it is killed or the domain ends. Says so line by line.
import { CloudAppError } from '@cloudapp/sdk'
import { openXen } from '@cloudapp/sdk/vmi'

const [which = '', mode = ''] = process.argv.slice(2)
const vm = await openXen(which)
if (mode === 'pause') {
  await vm.pause?.()
  await vm.pause?.()
}
await vm.memory.read([{ space: 0n, at: 0x100_0000n, length: 8 }])
console.log('ready')
const alive = setInterval(() => {}, 1000)
vm.closed.addEventListener('abort', () => {
  const { reason } = vm.closed
  console.log(CloudAppError.is(reason) ? `${reason.code} ${reason.message}` : String(reason))
  clearInterval(alive)
})
