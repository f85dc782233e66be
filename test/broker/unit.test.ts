import { copyFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { createKeyFile } from '../../src/capabilities/key-files.js'
import { readBrokerConfig } from '../../src/cli/broker-config.js'
import { COMMANDS } from '../../src/cli/commands.js'

const example = path.resolve(import.meta.dirname, '../../examples/broker')
const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-unit-'))
afterAll(() => rmSync(folder, { recursive: true }))

describe('the example of a system service', () => {
  const unit = readFileSync(path.join(example, 'cloudapp-broker.service'), 'utf8')
  const settings = new Map<string, string[]>()
  for (const line of unit.split('\n')) {
    const found = /^([A-Za-z]+)=(.*)$/.exec(line)
    if (found === null) continue
    const [, name = '', value = ''] = found
    settings.set(name, [...(settings.get(name) ?? []), value])
  }

  it('runs a command there is, with a configuration that is understood', async () => {
    const [, command, , file] = /cloudapp (\S+) (\S+) (\S+)$/.exec(settings.get('ExecStart')?.[0] ?? '') ?? []
    expect(COMMANDS.map(({ name }) => name)).toContain(command)
    expect(file).toBe('/etc/cloudapp/broker.json')
    copyFileSync(path.join(example, 'broker.json'), path.join(folder, 'broker.json'))
    await createKeyFile(path.join(folder, 'broker.key'))
    const { options, listen } = await readBrokerConfig(path.join(folder, 'broker.json'))
    // Where the unit makes folders for it, and nowhere else can it write.
    expect(options.state).toBe(`/var/lib/${settings.get('StateDirectory')?.[0]}`)
    expect(listen).toEqual([{ socket: `/run/${settings.get('RuntimeDirectory')?.[0]}/broker.sock`, mode: 0o660 }])
    expect(settings.get('ProtectSystem')).toEqual(['strict'])
  })

  it('has no privilege, no network, and nothing that hides its peers', () => {
    expect(settings.get('User')).toEqual(['cloudapp-broker'])
    expect(settings.get('CapabilityBoundingSet')).toEqual([''])
    expect(settings.get('NoNewPrivileges')).toEqual(['yes'])
    expect(settings.get('RestrictAddressFamilies')).toEqual(['AF_UNIX'])
    expect(settings.get('PrivateNetwork')).toEqual(['yes'])
    for (const breaks of ['PrivateUsers', 'MemoryDenyWriteExecute', 'ProcSubset', 'ProtectProc']) {
      expect(settings.has(breaks), breaks).toBe(false)
    }
  })
})
