import { connect, createServer } from 'node:net'

// A man in the middle: listens on one unix socket and passes every byte on to another. Arguments: its socket, the broker's.
const [mine, theirs] = process.argv.slice(2) as [string, string]
const server = createServer((near) => {
  const far = connect(theirs)
  for (const socket of [near, far]) socket.on('error', () => undefined)
  near.pipe(far).pipe(near)
})
server.listen(mine, () => process.stdout.write(`${JSON.stringify({ ready: true })}\n`))
