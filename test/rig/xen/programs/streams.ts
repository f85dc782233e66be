// Streams that share a vchan, over endpoints as apps use them.
//   node streams.mjs serve DOMID NAME        echoes on every stream of that domain
//   node streams.mjs ask DOMID NAME COUNT    opens so many at once and has each echo; when the first ends, opens one more
import { CloudAppError } from '@cloudapp/sdk'
import { type Channel, connectEndpoint, listenEndpoint } from '@cloudapp/sdk/transport'

const [role = '', domid = '', name = '', count = '1'] = process.argv.slice(2)
const endpoint = `vchan:${domid}/${name}`
const BYTES = 300_000

async function echo(channel: Channel): Promise<void> {
  console.log(`stream ${JSON.stringify(channel.peer)}`)
  for (let chunk = await channel.read(); chunk !== undefined; chunk = await channel.read()) {
    if (!channel.write(chunk)) await channel.drained()
  }
  await channel.close()
}

async function echoed(channel: Channel, fill: number): Promise<void> {
  const send = async () => {
    for (let sent = 0; sent < BYTES; sent += 10_000) {
      if (!channel.write(new Uint8Array(10_000).fill(fill))) await channel.drained()
    }
  }
  const receive = async () => {
    for (let got = 0; got < BYTES; ) {
      const chunk = await channel.read()
      if (chunk === undefined) throw new Error('the stream ended too early')
      if (!chunk.every((byte) => byte === fill)) throw new Error("another stream's bytes came")
      got += chunk.length
    }
  }
  await Promise.all([send(), receive()])
}

async function ask(): Promise<void> {
  const connect = () => connectEndpoint(endpoint, { timeout: 60_000 })
  const channels = await Promise.all(Array.from({ length: Number(count) }, connect))
  await Promise.all(channels.map(echoed))
  console.log(`answered ${count}`)
  const [first] = channels as [Channel]
  console.log(`peer ${JSON.stringify(first.peer)}`)
  await first.read().catch(() => undefined)
  console.log('ended')
  const again = await connect()
  await echoed(again, 77)
  console.log('again')
  await again.close()
}

try {
  if (role === 'ask') await ask()
  else {
    await listenEndpoint(endpoint, { onChannel: (channel) => void echo(channel).catch(() => undefined) })
    console.log('open')
  }
} catch (error) {
  console.log(CloudAppError.is(error) ? `${error.code} ${error.message}` : String(error))
}
