import { describe, expect, it } from 'vitest'
import { compileProgram } from '../../../src/vmi/events/compile.js'
import type { EventProgram, Expression } from '../../../src/vmi/events/program.js'

const cpuid = { kind: 'cpuid' } as const
const compiled = (program: unknown) => compileProgram(program as EventProgram)
const predicate = (expression: Expression) => {
  const { words } = compiled({ trap: cpuid, predicate: expression })
  return Array.from(words.subarray(8), Number)
}
const failure = (program: unknown) => {
  try {
    compiled(program)
  } catch (error) {
    return error as { code: string; message: string; details?: { place?: string } }
  }
  throw new Error('it compiled')
}

describe('compiling a program', () => {
  it('writes the head as cloudapp_events.h has it', () => {
    const { words } = compiled({ trap: { kind: 'register', register: 'cr4', changed: true }, rate: 7 })
    expect([...words]).toEqual([1n, 1n, 4n, 0n, 0n, 0n, 7n, 1n])
    const breakpoint = { kind: 'breakpoint', at: 0xffff_ffff_8100_0000n, space: 0x2000_0004n } as const
    expect([...compiled({ trap: breakpoint }).words].slice(0, 4)).toEqual([1n, 5n, breakpoint.at, breakpoint.space])
    expect([...compiled({ trap: { kind: 'msr', msr: 0xc000_0082 } }).words].slice(1, 3)).toEqual([3n, 0xc000_0082n])
  })

  it('writes predicates in postfix order', () => {
    const rax = { register: 'rax' } as const
    expect(predicate(['==', rax, 59n])).toEqual([2, 0, 1, 59, 12, 0])
    expect(predicate(['>', rax, 1n])).toEqual([1, 1, 2, 0, 13, 0])
    expect(predicate(['<=', rax, 1n])).toEqual([1, 1, 2, 0, 13, 0, 14, 0])
    expect(predicate(['load', ['+', rax, 8n], 4])).toEqual([2, 0, 1, 8, 5, 0, 4, 4])
    // A comparison is 0 or 1 already; a plain word is made so.
    expect(predicate(['and', ['==', { field: 'leaf' }, 1n], rax])).toEqual([
      3, 3, 1, 1, 12, 0, 2, 0, 14, 0, 14, 0, 7, 0,
    ])
  })

  it('lays captures out one after the other, by name', () => {
    const { words, captures, recordWords, uses } = compiled({
      trap: cpuid,
      captures: {
        d: { register: 'rbx' },
        c: { memory: { register: 'gsBase', path: [-8, 16, 24] }, bytes: 8 },
        b: { string: { register: 'rsi' }, bytes: 13 },
        a: { field: 'leaf' },
      },
    })
    expect([...words.subarray(8, 16)]).toEqual([2n, 3n, 0n, 0n, 0n, 0n, 0n, 0n])
    expect([...words.subarray(16, 24)]).toEqual([4n, 6n, 13n, 0n, 0n, 0n, 0n, 0n])
    expect([...words.subarray(24, 32)]).toEqual([3n, 25n, 8n, 2n, (1n << 64n) - 8n, 16n, 24n, 0n])
    expect(captures.map(({ word, bytes }) => [word, bytes])).toEqual([
      [6, undefined],
      [7, 13],
      [10, 8],
      [12, undefined],
    ])
    expect(recordWords).toBe(13)
    expect(uses).toEqual({ registers: ['rbx'], memory: true })
  })

  it('does not count what every event tells anyway as looked at', () => {
    const { uses } = compiled({ trap: cpuid, predicate: ['==', { register: 'cr3' }, 4096n] })
    expect(uses).toEqual({ registers: [], memory: false })
  })

  it.each([
    [null, 'program'],
    [{ trap: 'cpuid' }, 'program.trap.kind'],
    [{ trap: { kind: 'register', register: 'cr2' } }, 'program.trap.register'],
    [{ trap: { kind: 'breakpoint', at: 1, space: 0n } }, 'program.trap.at'],
    [{ trap: cpuid, predicate: 5 }, 'program.predicate'],
    [{ trap: cpuid, predicate: -1n }, 'program.predicate'],
    [{ trap: cpuid, predicate: ['==', 1n] }, 'program.predicate'],
    [{ trap: cpuid, predicate: ['==', 1n, ['~', 2n, 3n]] }, 'program.predicate[2][0]'],
    [{ trap: cpuid, predicate: ['load', 1n, 3] }, 'program.predicate[2]'],
    [{ trap: cpuid, predicate: { field: 'newValue' } }, 'program.predicate.field'],
    [{ trap: cpuid, captures: [] }, 'program.captures'],
    [{ trap: cpuid, captures: { time: { register: 'rax' } } }, 'program.captures'],
    [{ trap: cpuid, captures: { __proto__x: { register: 'rax' } } }, 'program.captures'],
    [{ trap: cpuid, captures: { a: {} } }, 'program.captures.a'],
    [{ trap: cpuid, captures: { a: { register: 'rax', field: 'leaf' } } }, 'program.captures.a'],
    [{ trap: cpuid, captures: { a: { register: 'rax', bytes: 8 } } }, 'program.captures.a.bytes'],
    [{ trap: cpuid, captures: { a: { memory: { register: 'rax' } } } }, 'program.captures.a.bytes'],
    [
      { trap: cpuid, captures: { a: { memory: { register: 'rax', path: [1.5] }, bytes: 8 } } },
      'program.captures.a.memory.path[0]',
    ],
    [{ trap: cpuid, rate: 0 }, 'program.rate'],
    [{ trap: cpuid, answer: 'pause' }, 'program.answer'],
  ])('refuses %o and names %s', (program, place) => {
    const error = failure(program)
    expect(error.code).toBe('ERR_CLOUDAPP_INVALID_ARGUMENT')
    expect(error.details?.place).toBe(place)
  })

  it('refuses unknown keys wherever they are', () => {
    for (const program of [
      { trap: cpuid, predicates: 1n },
      { trap: { kind: 'cpuid', leaf: 1n } },
      { trap: cpuid, captures: { a: { register: 'rax', offset: 1 } } },
      { trap: cpuid, captures: { a: { memory: { register: 'rax', hops: [1] }, bytes: 1 } } },
    ]) {
      expect(failure(program).code).toBe('ERR_CLOUDAPP_UNKNOWN_OPTION')
    }
  })

  it('stops at every bound', () => {
    let long: Expression = 1n
    for (let i = 0; i < 40; i++) long = ['+', long, 1n]
    let deep: Expression = 1n
    for (let i = 0; i < 9; i++) deep = ['+', 1n, deep]
    const nested: unknown[] = ['not', 0n]
    nested[1] = nested
    const captures = Object.fromEntries(Array.from({ length: 17 }, (_, i) => [`c${i}`, { register: 'rax' }]))
    const memory = { register: 'rax' }
    for (const program of [
      { trap: cpuid, predicate: long },
      { trap: cpuid, predicate: deep },
      { trap: cpuid, predicate: nested },
      { trap: cpuid, captures },
      { trap: cpuid, captures: { a: { memory, bytes: 257 } } },
    ]) {
      expect(failure(program).code).toBe('ERR_CLOUDAPP_LIMIT')
    }
  })
})
