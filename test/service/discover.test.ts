import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { SdClient } from '../../src/service/client.js'
import { announce, discover } from '../../src/service/discover.js'
import { later, temporaryFolder } from './support.js'

const root = process.getuid?.() === 0

/** A folder that only root can write, all the way up: not below /tmp's own mode, which is sticky. */
function rootFolder(): string {
  const folder = mkdtempSync('/var/lib/cloudapp-test-')
  chmodSync(folder, 0o755)
  later(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

describe('discover', () => {
  it.runIf(root)('believes what root announced', async () => {
    const folder = rootFolder()
    const endpoint = { name: 'ids', endpoint: 'unix:/run/cloudapp/sd/ids.sock' }
    expect(await announce(endpoint, { folder })).toBe(join(folder, 'ids.json'))
    expect(await discover('ids', { from: folder })).toEqual(endpoint)
    expect(await discover('ids', { from: join(folder, 'ids.json') })).toEqual(endpoint)
    await expect(discover('wall', { from: folder })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
  })

  it.runIf(root)('does not believe a file, or a folder above it, that others can write or own', async () => {
    const denied = { code: 'ERR_CLOUDAPP_DENIED' }
    const folder = rootFolder()
    const path = await announce({ name: 'ids', endpoint: 'unix:/x' }, { folder })
    chmodSync(path, 0o666)
    await expect(discover('ids', { from: folder })).rejects.toMatchObject(denied)
    chmodSync(path, 0o644)
    chownSync(path, 12_345, 12_345)
    await expect(discover('ids', { from: folder })).rejects.toMatchObject(denied)
    chownSync(path, 0, 0)
    chmodSync(folder, 0o777)
    await expect(discover('ids', { from: folder })).rejects.toMatchObject(denied)
    expect(await discover('ids', { from: folder, trustAnyOwner: true })).toMatchObject({ name: 'ids' })
  })

  it('refuses what is no announcement', async () => {
    const folder = temporaryFolder()
    const options = { from: folder, trustAnyOwner: true }
    const put = (text: string) => writeFileSync(join(folder, 'ids.json'), text)
    put('not json')
    await expect(discover('ids', options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    put('{"name":"ids","endpoint":"http://evil"}')
    await expect(discover('ids', options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    put('{"name":"ids","endpoint":"unix:/x","extra":1}')
    await expect(discover('ids', options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    put('{"name":"other","endpoint":"unix:/x"}')
    await expect(discover('ids', options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    put(' '.repeat(100_000))
    await expect(discover('ids', options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    mkdirSync(join(folder, 'dir.json'))
    symlinkSync('/dev/zero', join(folder, 'zero.json'))
    await expect(discover('dir', options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    await expect(discover('zero', options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    for (const name of ['../ids', '', 'A', 'a/b']) {
      await expect(discover(name, options)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    }
    await expect(discover('ids', { form: folder } as never)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
    })
  })
})

describe('SdClient.connect', () => {
  it('says what it can not reach', async () => {
    const gone = SdClient.connect(join(temporaryFolder(), 'none.sock'))
    await expect(gone).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    await expect(SdClient.connect('vchan:1/x')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_UNSUPPORTED' })
    // A path needs no mark of one; that nobody listens there is what is wrong.
    for (const relative of ['none.sock', 'unix:none.sock', './none.sock']) {
      await expect(SdClient.connect(relative)).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_NOT_FOUND' })
    }
    await expect(SdClient.connect('http://x')).rejects.toThrow(/known: unix:\/path, tls:HOST:PORT, vchan:NAME/)
    await expect(SdClient.connect('')).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_INVALID_ARGUMENT' })
    await expect(SdClient.connect('/x', { timeout: 1 } as never)).rejects.toMatchObject({
      code: 'ERR_CLOUDAPP_UNKNOWN_OPTION',
    })
    const signal = AbortSignal.abort()
    await expect(SdClient.connect('/x', { signal })).rejects.toMatchObject({ code: 'ERR_CLOUDAPP_ABORTED' })
  })

  it('loads no native code', async () => {
    const { startChild } = await import('./child.js')
    const child = await startChild('native-child.ts')
    let out = ''
    for await (const chunk of child.stdout) out += chunk
    expect(JSON.parse(out)).toEqual({ findings: 0, native: [] })
  })
})
