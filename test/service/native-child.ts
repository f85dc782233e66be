// Uses the client's subpath to the end, over a real socket, and says which native code was loaded meanwhile.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SdClient } from '../../src/client.js'

// A peer that says nothing of use: connecting is all that the transport does.
const folder = mkdtempSync(join(tmpdir(), 'cloudapp-native-'))
const path = join(folder, 's')
const server = createServer((socket) => socket.end()).listen(path)
let findings = 0
try {
  const client = await SdClient.connect(path)
  for await (const _ of client.findings.list()) findings++
} catch {
  // Expected: it is no service domain.
}
server.close()
rmSync(folder, { recursive: true, force: true })
const maps = readFileSync('/proc/self/maps', 'utf8')
const native = [...new Set(maps.split('\n').map((line) => line.split(' ').pop() ?? ''))].filter((file) =>
  file.endsWith('.node'),
)
process.stdout.write(JSON.stringify({ findings, native }))
