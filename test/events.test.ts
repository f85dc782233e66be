import { expect, test } from 'vitest'
import { Emitter } from '../src/events.js'

type Happenings = { word: (text: string) => void }

test('listeners are called until they are taken off, once-listeners once', () => {
  const emitter = new Emitter<Happenings>(() => {})
  const heard: string[] = []
  const listener = (text: string) => void heard.push(text)
  emitter.on('word', listener)
  emitter.once('word', (text) => heard.push(`once ${text}`))
  emitter.emit('word', 'a')
  emitter.emit('word', 'b')
  emitter.off('word', listener)
  emitter.emit('word', 'c')
  expect(heard).toEqual(['a', 'once a', 'b'])
})

test('a listener that throws hurts nobody', () => {
  const errors: unknown[] = []
  const emitter = new Emitter<Happenings>((error) => errors.push(error))
  const heard: string[] = []
  emitter.on('word', () => {
    throw new Error('ouch')
  })
  emitter.on('word', (text) => heard.push(text))
  emitter.emit('word', 'a')
  expect(heard).toEqual(['a'])
  expect(errors).toEqual([new Error('ouch')])
})
