// Our end of a vchan, in dom0 or in a guest. What it does is told line by line.
//   node vchan.mjs serve|connect DOMID PATH RING MODE [ARGUMENTS], with the modes of vchan-peer.c
// More such words after a +: one after the other. Starting Node takes longer than what it does.
import { CloudAppError } from '@cloudapp/sdk'
import { type Channel, connectVchan, serveVchan } from '@cloudapp/sdk/transport'

const say = (text: string) => console.log(text)
const pattern = (at: number) => (at * 7 + Math.floor(at / 256)) & 0xff

async function open(role: string, domid: string, path: string, ring: string): Promise<Channel> {
  const peer = Number(domid)
  if (role === 'connect') return connectVchan({ domid: peer, path, timeout: Number(process.env.TIMEOUT ?? 60_000) })
  return new Promise((resolve, reject) => {
    let taken = false
    const server = serveVchan({
      domid: peer,
      path,
      ring: Number(ring),
      onChannel: (channel) => {
        if (taken) return void channel.close()
        taken = true
        resolve(channel)
        void server.then((listener) => listener.close())
      },
      onError: reject,
    })
    server.then(() => say('open'), reject)
  })
}

async function echo(channel: Channel): Promise<void> {
  for (;;) {
    const chunk = await channel.read()
    if (chunk === undefined) return
    if (!channel.write(chunk)) await channel.drained()
  }
}

async function drive(channel: Channel, most: number): Promise<void> {
  let sent = 0
  let got = 0
  for (let size = 1; size <= most; size += 1 + Math.floor(size / 20)) {
    channel.write(new Uint8Array(size).map((_, i) => pattern(sent + i)))
    sent += size
    while (got < sent) {
      const chunk = await channel.read()
      if (chunk === undefined) throw new Error('the peer closed too early')
      for (const [i, byte] of chunk.entries()) if (byte !== pattern(got + i)) throw new Error('wrong bytes came back')
      got += chunk.length
    }
  }
  say(`drove ${sent} bytes`)
}

async function source(channel: Channel, bytes: number, piece: number): Promise<void> {
  const block = new Uint8Array(piece)
  for (let sent = 0; sent < bytes; sent += piece) {
    if (!channel.write(block.subarray(0, Math.min(piece, bytes - sent)))) await channel.drained()
  }
  await channel.read().catch(() => undefined)
}

async function sink(channel: Channel, bytes: number): Promise<void> {
  let begun = 0
  for (let got = 0; got < bytes; ) {
    const chunk = await channel.read()
    if (chunk === undefined) throw new Error('the peer closed too early')
    if (got === 0) begun = performance.now()
    got += chunk.length
  }
  say(`MB/s ${(bytes / 1000 / (performance.now() - begun)).toFixed(3)}`)
}

async function ping(channel: Channel, count: number): Promise<void> {
  const took: number[] = []
  for (let i = 0; i < count; i++) {
    const begun = performance.now()
    channel.write(new Uint8Array([1]))
    await channel.read()
    took.push((performance.now() - begun) * 1000)
  }
  took.sort((a, b) => a - b)
  say(`us ${took[took.length >> 1]?.toFixed(1)}`)
}

/** Waits for the end, however it comes. */
async function hold(channel: Channel): Promise<void> {
  say('held')
  const chunk = await channel.read()
  say(chunk === undefined ? 'the peer ended' : `${chunk.length} bytes`)
}

/** Tells the peer that it is connected. */
async function greet(channel: Channel): Promise<void> {
  channel.write(new Uint8Array(1))
  await hold(channel)
}

const modes: Readonly<Record<string, (channel: Channel, a: number, b: number) => Promise<void>>> = {
  echo,
  drive,
  source,
  sink,
  ping,
  hold,
  greet,
}

async function run(words: readonly string[]): Promise<void> {
  const [role = '', domid = '', path = '', ring = '', mode = '', first = '0', second = '0'] = words
  try {
    const channel = await open(role, domid, path, ring)
    say(`peer ${JSON.stringify(channel.peer)}`)
    channel.closed.addEventListener('abort', () => say(`closed ${Date.now()}`))
    await modes[mode]?.(channel, Number(first), Number(second))
    await channel.close()
  } catch (error) {
    say(CloudAppError.is(error) ? `${error.code} ${error.message}` : String(error))
  }
}

for (let words = process.argv.slice(2); words.length > 0; ) {
  const end = words.indexOf('+')
  await run(end < 0 ? words : words.slice(0, end))
  words = end < 0 ? [] : words.slice(end + 1)
}
