import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Linux, openVm } from '@cloudapp/sdk/vmi'
import { bootXen } from '../../test/rig/xen/lib/host.js'
import type { Soaked } from './usage.js'

/**
 * A dump of a domain that xl wrote shows the tasks the guest had. Not in the tests, for its time: xl asks Xen for each page
 * number below 4 GiB by itself, which takes minutes under emulation.
 */
export async function dumpXen(progress: (message: string) => void): Promise<Soaked[]> {
  const began = performance.now()
  const folder = mkdtempSync(path.join(tmpdir(), 'xen-dump-'))
  try {
    const file = path.join(folder, 'dumped.core')
    let release: string
    {
      await using xen = await bootXen({ progress })
      const guest = await xen.createGuest({ name: 'dumped', kind: 'pvh', memory: '128M', progress })
      await guest.run('sleep 424242 > /dev/null 2>&1 &')
      progress('xl dump-core; about five minutes')
      await xen.dom0.run('xl dump-core dumped /tmp/dumped.core', { timeoutMs: 1_800_000 })
      writeFileSync(file, await xen.dom0.pull('/tmp/dumped.core'))
      release = xen.kernel.release
    }
    await using vm = await openVm(`elf:${file}`)
    const linux = await Linux.attach(vm)
    const names = new Set((await linux.tasks()).map(({ comm }) => comm))
    const vcpus = (await vm.vcpus?.registers())?.length
    const missing = ['init', 'kthreadd', 'sleep'].filter((name) => !names.has(name))
    const failed = [
      ...(linux.release === release ? [] : [`the release is ${linux.release}, not ${release}`]),
      ...(missing.length === 0 ? [] : [`no task ${missing.join(', ')}`]),
      ...(vcpus === 1 ? [] : [`${vcpus} vCPUs instead of one`]),
    ]
    const seconds = (performance.now() - began) / 1000
    const none = { resident: 0, files: 0, mapped: 0 }
    return [{ name: 'dump.xen', unit: 'dump', count: 1, seconds, before: none, after: none, grown: failed }]
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
