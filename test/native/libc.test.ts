import { execFileSync } from 'node:child_process'
import path from 'node:path'
import { describe, expect, it } from 'vitest'
import type { FfiBackend } from '../../src/native/shim.js'

const root = path.resolve(import.meta.dirname, '../..')
const MIB = 1 << 20

/** MiB by which malloc's heap grows for 8 pieces of 4 MiB, and by which it is still larger when they are dropped. */
function growth(keep: boolean, backend: FfiBackend): { set: boolean; held: number; dropped: number } {
  const program = `
    import { readFileSync } from 'node:fs'
    import { setTimeout } from 'node:timers/promises'
    import { keepFreedMemory } from './src/native/libc.ts'
    // proc(5): the mapping between the end of the program and the break, of which malloc takes what it does not map.
    // It may be more than one to the kernel.
    const heap = () => {
      const all = [...readFileSync('/proc/self/maps', 'latin1').matchAll(/^(\\w+)-(\\w+) .*\\[heap\\]$/gm)]
      return Math.round(all.reduce((sum, [, from, to]) => sum + Number('0x' + to) - Number('0x' + from), 0) / ${MIB})
    }
    const set = ${keep} && keepFreedMemory(128 * ${MIB})
    const before = heap()
    let pieces = Array.from({ length: 8 }, () => Buffer.allocUnsafeSlow(4 * ${MIB}))
    const held = heap() - before
    pieces = undefined
    gc()
    // A thread of V8 frees them.
    await setTimeout(200)
    console.log(JSON.stringify({ set, held, dropped: heap() - before }))`
  const args = ['--expose-gc', '--import', './scripts/ts.mjs', '--input-type=module', '-e', program]
  const env = { ...process.env, CLOUDAPP_FFI: backend }
  return JSON.parse(execFileSync(process.execPath, args, { cwd: root, env, encoding: 'utf8' }))
}

describe.each(['koffi', 'ffi-napi'] as const)('keepFreedMemory through %s', (backend) => {
  it('has large pieces come from what malloc holds, and go back to it', () => {
    const [before, after] = [growth(false, backend), growth(true, backend)]
    expect(before.set).toBe(false)
    expect(before.held).toBeLessThan(4)
    expect(after.set).toBe(true)
    expect(after.held).toBeGreaterThanOrEqual(28)
    expect(after.dropped).toBeGreaterThanOrEqual(28)
  })
})
