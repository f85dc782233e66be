import { CloudAppError } from '../../errors.js'
import { nearest } from '../../options.js'
import { type Command, UsageError } from '../command.js'
import { sourceOption, withLinux } from '../vm.js'

export const command: Command = {
  summary: "Look up symbols of a VM's kernel",
  help: 'Without NAME every symbol is listed. In NAME, * stands for any letters and ? for one.',
  options: sourceOption,
  positionals: [{ name: 'NAME', help: "a symbol's name, or a pattern such as 'sys_call_*'" }],
  json: true,
  run: (invocation) =>
    withLinux(invocation, async (linux) => {
      const { args, out } = invocation
      const [name] = args.positionals
      const table = await linux.symbols()
      const wanted = name === undefined ? undefined : matcher(name)
      const symbols = []
      for (const symbol of table) {
        if (wanted === undefined || wanted(symbol.name))
          symbols.push({ name: symbol.name, address: symbol.address, type: symbol.type })
      }
      if (symbols.length === 0 && name !== undefined)
        throw notFound(
          name,
          [...table].map((symbol) => symbol.name),
        )
      if (out.isJson) out.json(symbols)
      else {
        out.table(
          [{ title: 'ADDRESS' }, { title: 'TYPE' }, { title: 'NAME' }],
          symbols.map((symbol) => [symbol.address, symbol.type, symbol.name]),
        )
      }
      return 0
    }),
}

/** Matches without backtracking: a pattern of many stars must not take exponential time. */
function matcher(pattern: string): (name: string) => boolean {
  if (pattern.length > 512) throw new UsageError('NAME is longer than any symbol (512 letters)')
  if (!/[*?]/.test(pattern)) return (name) => name === pattern
  return (name) => {
    let [at, star, mark] = [0, -1, 0]
    for (let i = 0; i < name.length; ) {
      if (pattern[at] === '*') {
        star = at++
        mark = i
      } else if (pattern[at] === '?' || pattern[at] === name[i]) {
        at++
        i++
      } else if (star >= 0) {
        at = star + 1
        i = ++mark
      } else {
        return false
      }
    }
    while (pattern[at] === '*') at++
    return at === pattern.length
  }
}

function notFound(name: string, known: readonly string[]): CloudAppError {
  const guess = /[*?]/.test(name) ? undefined : nearest(name, known)
  const hint = guess === undefined ? '' : `; did you mean '${guess}'?`
  return new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `no symbol '${name}' among ${known.length} of this kernel${hint}`)
}
