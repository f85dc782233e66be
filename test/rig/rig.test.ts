import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { bootVm, projectRoot } from './lib/index.js'

const running = (pid: number): boolean => {
  try {
    // A zombie has ended; its parent, who is gone, can not say so.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
  } catch {
    return false
  }
}

const until = async (what: string, condition: () => boolean): Promise<void> => {
  for (let i = 0; !condition(); i++) {
    if (i > 600) throw new Error(`waited in vain until ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** A program that boots a VM and then does nothing until it is ended. */
async function booted(): Promise<{ signal(name: NodeJS.Signals): Promise<void>; pid: number; folder: string }> {
  const program = `
    const { bootVm } = await import('./test/rig/lib/index.ts')
    const vm = await bootVm({ noAgent: true })
    console.log(JSON.stringify({ pid: vm.pid, folder: vm.folder }))
    setInterval(() => {}, 1000)`
  const child = spawn(process.execPath, ['--import', './scripts/ts.mjs', '--input-type=module', '-e', program], {
    cwd: projectRoot,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout.once('data', (bytes: Buffer) => resolve(bytes.toString()))
    child.once('exit', () => reject(new Error('it ended before its VM was there')))
  })
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  return {
    ...(JSON.parse(line) as { pid: number; folder: string }),
    signal: async (name) => {
      child.kill(name)
      await ended
    },
  }
}

describe('what the rig starts', () => {
  it.each(['SIGTERM', 'SIGINT', 'SIGHUP'] as const)('ends with it on %s', async (name) => {
    const vm = await booted()
    expect(running(vm.pid)).toBe(true)
    await vm.signal(name)
    await until('QEMU has ended', () => !running(vm.pid))
    expect(existsSync(vm.folder)).toBe(false)
  })

  it('ends with it on SIGKILL, and the next VM removes the folder', async () => {
    const vm = await booted()
    await vm.signal('SIGKILL')
    await until('QEMU has ended', () => !running(vm.pid))
    await using next = await bootVm({ noAgent: true })
    expect(existsSync(next.folder)).toBe(true)
    expect(existsSync(vm.folder)).toBe(false)
  })

  it('keeps the RAM and the sockets from other uids', async () => {
    await using vm = await bootVm({ noAgent: true })
    for (const file of [vm.ram, vm.qmp]) {
      const { status } = spawnSync('setpriv', ['--reuid=65534', '--regid=65534', '--clear-groups', 'test', '-r', file])
      expect(status).toBe(1)
    }
  })
})

describe('a guest', () => {
  it('that does not come up is an error with the end of its console', async () => {
    const failing = bootVm({ append: 'rdinit=/nothing', timeoutMs: 120_000 })
    await expect(failing).rejects.toThrow(/did not come up[\s\S]*Kernel panic/)
  })

  it('runs scripts, keeps their outputs apart and takes files both ways', async () => {
    await using vm = await bootVm()
    expect(await vm.guest.run('echo out; echo err >&2; exit 3', { check: false })).toEqual({
      status: 3,
      stdout: 'out\n',
      stderr: 'err\n',
    })
    await expect(vm.guest.run('echo why >&2; false')).rejects.toThrow(/ended with 1[\s\S]*why/)
    const bytes = Buffer.from(Array.from({ length: 50_000 }, (_, i) => (i * 7) % 256))
    await vm.guest.push('/tmp/file', bytes)
    expect((await vm.guest.pull('/tmp/file')).equals(bytes)).toBe(true)
    await expect(vm.guest.run('sleep 100', { timeoutMs: 100 })).rejects.toThrow(/100 ms/)
  })
})

describe('the set-up', () => {
  const setUp = (...wrapper: string[]) =>
    spawnSync(
      wrapper[0] ?? process.execPath,
      [...wrapper.slice(1), ...(wrapper.length ? [process.execPath] : []), 'scripts/setup.mjs'],
      {
        cwd: projectRoot,
        encoding: 'utf8',
        env: { ...process.env, npm_lifecycle_event: 'demo' },
      },
    )

  it('names the command and exits 2 without root', () => {
    // Another user, who may read the checkout wherever it lies.
    const caps = ['--inh-caps=+dac_read_search', '--ambient-caps=+dac_read_search']
    const { status, stderr } = setUp('setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', ...caps)
    expect(stderr).toContain('not root')
    expect(stderr).toContain('npm run demo')
    expect(status).toBe(2)
  })

  it('names the command and exits 2 on another system', () => {
    const elsewhere =
      'echo ID=other > /run/rig-os && mount --bind /run/rig-os /etc/os-release && rm /run/rig-os && exec "$0" "$@"'
    const { status, stderr } = setUp('unshare', '--mount', 'sh', '-c', `mount -t tmpfs none /run && ${elsewhere}`)
    expect(stderr).toContain('no Debian')
    expect(stderr).toMatch(/apt-get install .*qemu-system-x86.* && npm run demo/)
    expect(status).toBe(2)
  })
})
