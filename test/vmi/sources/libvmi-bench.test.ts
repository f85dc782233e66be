import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, it } from 'vitest'
import { SyntheticGuest } from '../../../src/testing/index.js'

const root = fileURLToPath(new URL('../../../', import.meta.url))

// The benchmark beside LibVMI (bench/libvmi.ts) needs one to be found; what it runs in dom0 is tried here with a library of
// ours that has its ABI, over a file. Both sides sum up what they read, and the sums must agree.
it('reads beside LibVMI what LibVMI reads', async () => {
  const native = join(root, 'native/libvmi-shim')
  const stub = 'build/stub-libvmi/libvmi.so.0'
  execFileSync('make', ['-s', '-C', native, stub], { stdio: ['ignore', 'ignore', 'inherit'] })
  const programs = join(root, 'test/rig/xen/programs')
  const folder = mkdtempSync(join(tmpdir(), 'cloudapp-libvmi-bench-'))
  try {
    const program = join(folder, 'bench-libvmi')
    execFileSync('gcc', ['-O2', '-std=gnu11', join(programs, 'bench-libvmi.c'), '-o', program])
    const ram = join(folder, 'guest.raw')
    await (await SyntheticGuest.create({ levels: 4 })).write(ram)
    const args = ['--import', './scripts/ts.mjs', join(programs, 'bench-libvmi.ts')]
    const about = [`raw:${ram}`, `file:${ram}`, '32', join(native, stub), program]
    const env = { ...process.env, CLOUDAPP_CACHE: join(folder, 'cache') }
    const said = execFileSync(process.execPath, [...args, ...about], { cwd: root, encoding: 'utf8', env })
    const lines: { name: string; ours: number; c: number }[] = JSON.parse(said)
    expect(lines.map(({ name }) => name)).toEqual(['attach', 'tasks-cold', 'tasks-warm', 'random-reads', 'bulk'])
    for (const { ours, c } of lines) expect(Math.min(ours, c)).toBeGreaterThan(0)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
})
