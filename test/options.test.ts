import { describe, expect, it } from 'vitest'
import { CloudAppError } from '../src/errors.js'
import { checkOptions, nearest } from '../src/options.js'

describe('nearest', () => {
  it.each([
    ['rigths', 'rights'],
    ['Expire', 'expires'],
    ['tsaks', 'tasks'],
  ])('%s stands for %s', (word, meant) => {
    expect(nearest(word, ['rights', 'expires', 'tasks'])).toBe(meant)
  })

  it('guesses nothing from a word far from all', () => {
    expect(nearest('colour', ['rights', 'expires'])).toBeUndefined()
  })
})

describe('checkOptions', () => {
  it('lets known keys and no options pass', () => {
    checkOptions('open', { signal: 1 }, ['signal', 'limit'])
    checkOptions('open', undefined, [])
  })

  it('refuses an unknown key and names the nearest', () => {
    let thrown: unknown
    try {
      checkOptions('open', { singal: 1 }, ['signal', 'limit'])
    } catch (error) {
      thrown = error
    }
    expect(CloudAppError.is(thrown, 'ERR_CLOUDAPP_UNKNOWN_OPTION')).toBe(true)
    expect((thrown as Error).message).toBe("open knows no option 'singal'; did you mean 'signal'?")
  })

  it('refuses what is not an object', () => {
    expect(() => checkOptions('open', [] as object, ['signal'])).toThrow(/must be an object/)
  })
})
