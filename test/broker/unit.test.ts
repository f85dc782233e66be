import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { createKeyFile } from '../../src/capabilities/key-files.js'
import { readBrokerConfig } from '../../src/cli/broker-config.js'
import { COMMANDS } from '../../src/cli/commands.js'
import { DEFAULT_SUPERVISOR } from '../../src/cli/flask-options.js'

const example = path.resolve(import.meta.dirname, '../../examples/broker')
const folder = mkdtempSync(path.join(tmpdir(), 'cloudapp-unit-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** What a unit file says, by section and name; a line that ends in a backslash goes on. */
function unitFile(name: string): Map<string, Map<string, string[]>> {
  const sections = new Map<string, Map<string, string[]>>()
  let settings = new Map<string, string[]>()
  for (const line of readFileSync(path.join(example, name), 'utf8').replaceAll('\\\n', ' ').split('\n')) {
    const section = /^\[(\w+)\]$/.exec(line)?.[1]
    if (section !== undefined) {
      settings = new Map()
      sections.set(section, settings)
    }
    const found = /^([A-Za-z]+)=(.*)$/.exec(line)
    if (found === null) continue
    const [, key = '', value = ''] = found
    settings.set(key, [...(settings.get(key) ?? []), value])
  }
  return sections
}

const units = ['cloudapp-broker.service', 'cloudapp-direct.service']
const without = !existsSync('/usr/bin/systemd-analyze')

describe('to systemd', () => {
  it.for(units)('%s is well formed', (name, { skip }) => {
    skip(without, 'systemd-analyze is not installed')
    // It succeeds also where it ignores a key that is misspelt, or in a wrong section.
    const { status, stderr } = spawnSync('systemd-analyze', ['verify', path.join(example, name)], { encoding: 'utf8' })
    const said = stderr.split('\n').filter((line) => line.includes(name))
    expect({ status, said }).toEqual({ status: 0, said: [] })
  })
})

describe('the example of a system service', () => {
  const settings = unitFile('cloudapp-broker.service').get('Service') ?? new Map<string, string[]>()

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

  it('undoes what it left in VMs whatever it died of, which needs the ledger of it', () => {
    const command = /cloudapp (\S+ \S+)$/.exec(settings.get('ExecStopPost')?.[0] ?? '')?.[1]
    expect(COMMANDS.map(({ name }) => name)).toContain(command)
    expect(settings.get('RuntimeDirectoryPreserve')).toEqual(['yes'])
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

describe('the supervisor of direct access as a system service', () => {
  const sections = unitFile('cloudapp-direct.service')
  const settings = sections.get('Service') ?? new Map<string, string[]>()

  it('is started again whatever happens to it', () => {
    expect(settings.get('Restart')).toEqual(['always'])
    expect(sections.get('Unit')?.get('StartLimitIntervalSec')).toEqual(['0'])
  })

  it('runs a command there is, in folders of its own, which the documents name too', () => {
    const [start = ''] = settings.get('ExecStart') ?? []
    expect(COMMANDS.map(({ name }) => name)).toContain(/cloudapp (\S+ \S+) /.exec(start)?.[1])
    const state = `/var/lib/${settings.get('StateDirectory')?.[0]}`
    expect(start).toContain(` --state ${state} `)
    // The broker's own folder belongs to another user.
    const socket = `/run/${settings.get('RuntimeDirectory')?.[0]}/direct.sock`
    expect(socket.startsWith('/run/cloudapp/')).toBe(false)
    expect(start).toContain(` --supervisor ${socket} `)
    expect(DEFAULT_SUPERVISOR).toBe(socket)
    const flask = readFileSync(path.join(example, '../../docs/flask.md'), 'utf8')
    expect(flask).toContain(`flask supervise --state ${state}\``)
    for (const text of [flask, readFileSync(path.join(example, 'README.md'), 'utf8')]) {
      expect(text).toContain(`"supervisor": "${socket}"`)
    }
  })

  it('is confined, but for what ends a domain', () => {
    expect(settings.get('CapabilityBoundingSet')).toEqual(['CAP_DAC_OVERRIDE CAP_KILL'])
    expect(settings.get('ProtectSystem')).toEqual(['strict'])
    expect(settings.get('SystemCallFilter')).toEqual(['@system-service'])
    expect(settings.get('DeviceAllow')).toContain('/dev/xen/privcmd rw')
    expect(settings.has('ProtectKernelTunables')).toBe(false)
  })
})
