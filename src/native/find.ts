import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { CloudAppError } from '../errors.js'

const FILE = 'libcloudapp_shim.so'
const AGENT = 'cloudapp-event-agent'

/** The folder of this package: the source checkout, or where npm put it. */
function packageRoot(): string | undefined {
  for (let folder = dirname(fileURLToPath(import.meta.url)); ; folder = dirname(folder)) {
    const manifest = join(folder, 'package.json')
    if (existsSync(manifest)) {
      const { name } = JSON.parse(readFileSync(manifest, 'utf8')) as { name?: unknown }
      if (name === '@cloudapp/sdk') return folder
    }
    if (folder === dirname(folder)) return undefined
  }
}

/**
 * The path of the native library: what `CLOUDAPP_NATIVE_LIB` names; in a source checkout what `make` built (a library
 * packed earlier may be older); else the file of the optional package for this platform.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NATIVE` with what was looked for and how to get it.
 */
export function findNativeLibrary(): string {
  return find(FILE, 'CLOUDAPP_NATIVE_LIB', 'the native library')
}

/**
 * The path of the event agent, looked for in the same places; `CLOUDAPP_EVENT_AGENT` names another.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NATIVE` with what was looked for and how to get it.
 */
export function findEventAgent(): string {
  return find(AGENT, 'CLOUDAPP_EVENT_AGENT', 'the event agent')
}

function find(file: string, variable: string, what: string): string {
  const named = process.env[variable]
  if (named !== undefined && named !== '') {
    if (existsSync(named)) return named
    throw missing(`${variable} names ${named}, which does not exist`, [named], 'unset it, or correct the path')
  }

  const platform = `${process.platform}-${process.arch}`
  const looked: string[] = []
  const root = packageRoot()
  const checkout = root !== undefined && existsSync(join(root, 'native/libvmi-shim/Makefile'))
  if (root !== undefined && checkout) {
    const built = join(root, 'native/libvmi-shim/build', file)
    if (existsSync(built)) return built
    looked.push(built)
  }

  const name = `@cloudapp/sdk-${platform}`
  try {
    return createRequire(import.meta.url).resolve(`${name}/${file}`)
  } catch {
    looked.push(`the package ${name}`)
  }
  const fix = checkout
    ? 'run make -C native/libvmi-shim'
    : platform === 'linux-x64'
      ? `run npm install ${name} (npm leaves it out with --omit=optional)`
      : 'a Linux host on x86-64 is needed'
  throw missing(`${what} is missing`, looked, fix)
}

function missing(what: string, looked: readonly string[], fix: string): CloudAppError {
  return new CloudAppError('ERR_CLOUDAPP_NATIVE', `${what}; looked for ${looked.join(' and ')}: ${fix}`, {
    details: { looked, fix },
  })
}
