import { copyFileSync } from 'node:fs'
import path from 'node:path'
import { bootVm, cached, fileKey, initramfs, kernel, keyOf } from '../test/rig/lib/index.js'

/** RAM of a live 512 MiB Linux guest with about a hundred tasks, taken while it stood still; made once. */
export async function guestImage(progress: (message: string) => void): Promise<string> {
  const linux = await kernel('6.1', { progress })
  const setup = 'i=0; while [ $i -lt 54 ]; do sleep 1000000 & i=$((i+1)); done'
  const initrd = await initramfs({ kernel: linux, setup })
  const folder = await cached(
    'bench-image',
    keyOf(linux.release, fileKey(initrd)),
    async (into) => {
      await using vm = await bootVm({ name: 'bench', kernel: linux, initrd, memory: '512M', progress })
      await vm.monitor.execute('stop')
      copyFileSync(vm.ram, path.join(into, 'ram.raw'))
    },
    { progress },
  )
  return path.join(folder, 'ram.raw')
}
