/**
 * What a party tries that it should not be able to do; says what happened, one line each. For the demo.
 *
 *   probe open FILE…                    open the files
 *   probe overreach BROKER KEY TOKEN    redeem the token, try to write the VM's memory
 *   probe outlive BROKER KEY TOKEN      redeem the token, look; then, on a line of input, look again
 */
import { closeSync, openSync, readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { createInterface } from 'node:readline/promises'
import { CloudAppError, crossView, type Delegation, Linux, loadKey, type TokenText } from '@cloudapp/sdk'
import { connectBroker } from '@cloudapp/sdk/broker'

const [what, ...args] = process.argv.slice(2)
const say = (text: string) => process.stdout.write(`${text}\n`)
const codeOf = (error: unknown) =>
  CloudAppError.is(error) ? error.code : ((error as NodeJS.ErrnoException).code ?? String(error))

async function open(file: string): Promise<string> {
  try {
    if (!file.endsWith('.sock')) {
      closeSync(openSync(file, 'r'))
      return 'opened'
    }
    await new Promise<void>((resolve, reject) => {
      const socket = connect(file, () => {
        socket.destroy()
        resolve()
      })
      socket.once('error', reject)
    })
    return 'opened'
  } catch (error) {
    return codeOf(error)
  }
}

async function redeem([broker = '', key = '', token = '']: string[]): Promise<Delegation<'memory.read'>> {
  const connection = await connectBroker({ path: broker, key: await loadKey(key) })
  return connection.redeem<'memory.read'>(readFileSync(token, 'utf8').trim() as TokenText)
}

if (what === 'open') {
  for (const file of args) say(await open(file))
} else if (what === 'overreach') {
  const vm = await redeem(args)
  await vm.demand('memory.write').then(
    () => say('granted'),
    (error) => say(codeOf(error)),
  )
  process.exit()
} else if (what === 'outlive') {
  const vm = await redeem(args)
  const linux = await Linux.attach(vm)
  say(`found ${(await crossView(linux)).length}`)
  await createInterface({ input: process.stdin }).question('')
  await crossView(linux).then(
    () => say('looked'),
    (error) => say(codeOf(error)),
  )
  await redeem(args).then(
    () => say('redeemed'),
    (error) => say(codeOf(error)),
  )
  process.exit()
}
