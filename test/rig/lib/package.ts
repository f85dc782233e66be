import { cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { projectRoot } from './cache.js'

interface LockEntry {
  readonly dev?: boolean
  readonly devOptional?: boolean
  readonly peer?: boolean
  readonly link?: boolean
  readonly resolved?: string
}

/** What `npm install @cloudapp/sdk` would put there: the built package, its native library and its dependencies. */
export function copyPackage(into: string, dist = path.join(projectRoot, 'dist')): void {
  const lock: { packages: Record<string, LockEntry> } = JSON.parse(
    readFileSync(path.join(projectRoot, 'package-lock.json'), 'utf8'),
  )
  for (const [name, entry] of Object.entries(lock.packages)) {
    const from = path.join(projectRoot, name)
    if (
      !name.startsWith('node_modules/') ||
      entry.dev ||
      entry.devOptional ||
      entry.peer ||
      entry.link ||
      !existsSync(from)
    )
      continue
    cpSync(from, path.join(into, name.slice('node_modules/'.length)), { recursive: true, dereference: true })
  }
  const native = path.join(into, '@cloudapp/sdk-linux-x64')
  cpSync(path.join(projectRoot, 'packages/linux-x64'), native, { recursive: true })
  for (const binary of ['libcloudapp_shim.so', 'cloudapp-event-agent']) {
    cpSync(path.join(projectRoot, 'native/libvmi-shim/build', binary), path.join(native, binary))
  }
  const own = path.join(into, '@cloudapp/sdk')
  mkdirSync(own, { recursive: true })
  cpSync(dist, path.join(own, 'dist'), { recursive: true })
  cpSync(path.join(projectRoot, 'package.json'), path.join(own, 'package.json'))
}
