import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { findEventAgent } from '../../../src/native/find.js'
import { toldOf } from '../../../src/vmi/sources/recovered.js'
import { recoverXen } from '../../../src/vmi/sources/xen-recover.js'

const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-recover-'))
afterAll(() => rmSync(folder, { recursive: true }))
const before = process.env.CLOUDAPP_EVENT_AGENT
afterEach(() => {
  if (before === undefined) delete process.env.CLOUDAPP_EVENT_AGENT
  else process.env.CLOUDAPP_EVENT_AGENT = before
})

/** In place of the agent: what it does is tested in C and on real Xen. */
function agent(script: string): void {
  const file = path.join(folder, 'agent')
  writeFileSync(file, `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  process.env.CLOUDAPP_EVENT_AGENT = file
}

describe('recovering from killed agents', () => {
  it('asks for all domains, and tells what was undone in each', async () => {
    agent(`[ "$*" = --recover ] || exit 2; printf '3 2 1 0\\n12 0 0 1\\n'`)
    const domains = await recoverXen()
    expect(domains).toEqual([
      { source: 'xen:3', breakpoints: 2, events: true, pauses: 0 },
      { source: 'xen:12', breakpoints: 0, events: false, pauses: 1 },
    ])
    expect(domains.map(toldOf)).toEqual([
      'xen:3: undid 2 breakpoints, trapped events that killed processes left',
      'xen:12: undid 1 pause that killed processes left',
    ])
  })

  it('does nothing where there is nothing to undo', async () => {
    agent('exit 0')
    expect(await recoverXen()).toEqual([])
  })

  it('does nothing without Xen, whatever ledgers lie there', async () => {
    const ledger = 'mount -t tmpfs none /run && install -d -m 700 /run/cloudapp/patches && : > /run/cloudapp/patches/7'
    const real = findEventAgent()
    agent(`exec unshare --mount sh -c 'mount -t tmpfs none /sys && ${ledger} && exec ${real} --recover'`)
    expect(await recoverXen()).toEqual([])
  })

  it('says why it could not', async () => {
    agent('echo "cloudapp-event-agent: Xen refuses to pause domain 3" >&2; exit 1')
    await expect(recoverXen()).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_SOURCE',
      message: 'the event agent could not recover (status 1): cloudapp-event-agent: Xen refuses to pause domain 3',
    })
  })
})
