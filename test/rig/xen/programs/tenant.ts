// A client of another tenant: asks a service domain, which it finds by its name, for all there is, and for findings by their
// uids. One line of JSON.
import { discover, SdClient } from '@cloudapp/sdk/client'

const [name = '', ...uids] = process.argv.slice(2)

await using client = await SdClient.connect((await discover(name)).endpoint)
const list: unknown[] = []
for await (const found of client.findings.list()) list.push(found)
const stop = new AbortController()
const watched: unknown[] = []
for await (const seen of client.findings.watch({ signal: stop.signal, onLive: () => stop.abort() })) watched.push(seen)
const told = async (uid: string) => {
  try {
    return await client.findings.get(uid)
  } catch (error) {
    const { code, message } = error as Error & { code?: string }
    return `${code} ${message.replaceAll(uid, 'UID')}`
  }
}
const asked: unknown[] = []
for (const uid of uids) asked.push(await told(uid))
console.log(JSON.stringify({ list, watched, asked }))
