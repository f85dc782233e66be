import { createServer } from 'node:net'

// The other end of bench/bare.ts: gives back what it is sent, but for one byte, which asks for `stream` bytes.
const [socket, stream = '0', chunk = '1'] = process.argv.slice(2)
const bytes = Buffer.alloc(Number(chunk), 1)
const server = createServer((peer) => {
  peer.on('error', () => peer.destroy())
  peer.on('data', (data) => {
    if (data.length !== 1) return void peer.write(data)
    let left = Number(stream)
    const send = (): void => {
      while (left > 0) {
        left -= bytes.length
        if (!peer.write(bytes)) return void peer.once('drain', send)
      }
    }
    send()
  })
})
server.listen(socket, () => console.log('ready'))
