import path from 'node:path'
import type { BrokerListenOptions, BrokerOptions } from '../broker/broker.js'
import { loadKey } from '../capabilities/key-files.js'
import { CloudAppError } from '../errors.js'
import { checkOptions } from '../options.js'
import { parseEndpoint } from '../transport/endpoint.js'
import { readTextFile } from './files.js'

/** What the file of `cloudapp broker --config` says, with its paths made absolute. */
export interface BrokerConfig {
  readonly options: BrokerOptions
  /** One at least. */
  readonly listen: readonly BrokerListenOptions[]
}

const MAX_CONFIG = 64 * 1024

/**
 * Reads a broker's configuration: JSON with `key`, `register`, `state`, `socket` (a path, `tls:HOST:PORT`, `vchan:NAME`, or a
 * list of them), and optionally `mode` (of a unix socket, an octal string such as "0660"), `maxPauseMs`, `supervisor` (the socket
 * of `cloudapp flask supervise`) and `audit` (`path`, `fsync`, `intervalMs`, `segmentBytes`, `quota`). Relative
 * paths start at the file's folder.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`, `ERR_CLOUDAPP_INVALID_ARGUMENT`, `ERR_CLOUDAPP_UNKNOWN_OPTION`
 */
export async function readBrokerConfig(file: string): Promise<BrokerConfig> {
  const config = parse(file, await readTextFile(file, MAX_CONFIG, 'the configuration'))
  checkOptions(file, config, ['key', 'register', 'state', 'socket', 'mode', 'maxPauseMs', 'audit', 'supervisor'])
  const folder = path.dirname(path.resolve(file))
  const at = (name: string) => path.resolve(folder, text(file, config, name))
  const audit = auditOf(file, config.audit)
  const maxPauseMs = config.maxPauseMs === undefined ? undefined : count(file, config, 'maxPauseMs')
  return {
    options: {
      key: await loadKey(at('key')),
      register: at('register'),
      state: at('state'),
      ...(config.supervisor === undefined ? {} : { supervisor: at('supervisor') }),
      ...(maxPauseMs === undefined ? {} : { maxPauseMs }),
      ...(audit === undefined
        ? {}
        : { audit: audit.path ? { ...audit, path: path.resolve(folder, audit.path) } : audit }),
    },
    listen: endpoints(file, config.socket, folder).map((socket) => ({
      socket,
      ...(parseEndpoint(socket).kind === 'unix' ? mode(file, config.mode) : {}),
    })),
  }
}

function parse(file: string, json: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (cause) {
    throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${file} is no JSON: ${(cause as Error).message}`, {
      cause,
    })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw wrong(file, 'the file', 'one JSON object')
  return value as Record<string, unknown>
}

function text(file: string, config: Record<string, unknown>, name: string): string {
  const value = config[name]
  if (typeof value !== 'string' || value === '') throw wrong(file, name, 'a path')
  return value
}

/** What is misspelt or of a wrong kind here would be a log that is kept otherwise than its owner thinks. */
function auditOf(file: string, value: unknown): BrokerOptions['audit'] | undefined {
  if (value === undefined) return undefined
  const audit = object(file, 'audit', value)
  checkOptions(`${file}: audit`, audit, ['path', 'fsync', 'intervalMs', 'segmentBytes', 'quota'])
  const { fsync, quota } = audit
  if (fsync !== undefined && fsync !== 'always' && fsync !== 'interval')
    throw wrong(file, 'fsync', "'always' or 'interval'")
  return {
    ...(audit.path === undefined ? {} : { path: text(file, audit, 'path') }),
    ...(fsync === undefined ? {} : { fsync }),
    ...(audit.intervalMs === undefined ? {} : { intervalMs: count(file, audit, 'intervalMs') }),
    ...(audit.segmentBytes === undefined ? {} : { segmentBytes: count(file, audit, 'segmentBytes') }),
    ...(quota === undefined ? {} : { quota: quotaOf(file, object(file, 'quota', quota)) }),
  }
}

function quotaOf(file: string, quota: Record<string, unknown>): { recordsPerSecond: number; burst: number } {
  checkOptions(`${file}: quota`, quota, ['recordsPerSecond', 'burst'])
  return { recordsPerSecond: count(file, quota, 'recordsPerSecond'), burst: count(file, quota, 'burst') }
}

function object(file: string, name: string, value: unknown): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrong(file, name, 'an object')
  return value as Record<string, unknown>
}

function count(file: string, config: Record<string, unknown>, name: string): number {
  const value = config[name]
  if (Number.isSafeInteger(value) && (value as number) > 0) return value as number
  throw wrong(file, name, 'a whole number above 0')
}

/** At most so many sockets. */
const MAX_SOCKETS = 16

function endpoints(file: string, value: unknown, folder: string): string[] {
  const list: unknown[] = Array.isArray(value) ? value : [value]
  if (list.length === 0 || list.length > MAX_SOCKETS) throw wrong(file, 'socket', `1 to ${MAX_SOCKETS} endpoints`)
  return list.map((one) => {
    if (typeof one !== 'string' || one === '')
      throw wrong(file, 'socket', 'a path, tls:HOST:PORT, vchan:NAME, or a list of them')
    const endpoint = parseEndpoint(one)
    return endpoint.kind === 'unix' ? path.resolve(folder, endpoint.path) : one
  })
}

function mode(file: string, value: unknown): { mode?: number } {
  if (value === undefined) return {}
  if (typeof value !== 'string' || !/^0?[0-7]{3}$/.test(value))
    throw wrong(file, 'mode', 'an octal string such as "0660"')
  return { mode: Number.parseInt(value, 8) }
}

function wrong(file: string, name: string, what: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${file}: ${name} must be ${what}`)
}
