import { CloudAppError } from '../../errors.js'
import type { Channel } from '../../transport/channel.js'

/** The peer's lines, each at most `limit` bytes. @throws CloudAppError `ERR_CLOUDAPP_PROTOCOL` for a longer one. */
export async function* readLines(channel: Channel, limit: number): AsyncGenerator<string> {
  let rest = Buffer.alloc(0)
  for (;;) {
    for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10)) {
      yield rest.toString('utf8', 0, end)
      rest = rest.subarray(end + 1)
    }
    if (rest.length > limit) throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `a line of more than ${limit} bytes came`)
    const bytes = await channel.read()
    if (bytes === undefined) return
    rest = Buffer.concat([rest, bytes])
  }
}
