import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { cacheRoot, keyOf } from './cache.js'
import { run } from './process.js'
import type { RigOptions } from './types.js'

/** The Debian mirror and its keyring as this machine is already set up to use them. */
export interface Mirror {
  readonly uri: string
  readonly keyring: string
}

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'

/** Reads the mirror out of the machine's own apt sources (both formats); nothing under /etc/apt is changed. */
export function hostMirror(root = '/etc/apt'): Mirror {
  const files = [path.join(root, 'sources.list')]
  const parts = path.join(root, 'sources.list.d')
  if (existsSync(parts)) files.push(...readdirSync(parts).map((name) => path.join(parts, name)))
  for (const file of files) {
    if (!existsSync(file)) continue
    const uri = file.endsWith('.sources')
      ? fromDeb822(readFileSync(file, 'utf8'))
      : fromList(readFileSync(file, 'utf8'))
    if (uri) return { uri, keyring: KEYRING }
  }
  throw new Error(`No Debian mirror in ${files.join(', ')}`)
}

const isDebian = (uri: string): boolean => /\/debian\/?$/.test(uri)

function fromDeb822(text: string): string | undefined {
  for (const stanza of text.split(/\n\s*\n/)) {
    const uris = /^URIs:\s*(.+)$/m.exec(stanza.replace(/^#.*\n/gm, ''))?.[1]?.split(/\s+/) ?? []
    const uri = uris.find(isDebian)
    if (uri) return uri
  }
  return undefined
}

function fromList(text: string): string | undefined {
  for (const line of text.split('\n')) {
    const uri = /^\s*deb\s+(?:\[[^\]]*\]\s+)?(\S+)/.exec(line)?.[1]
    if (uri && isDebian(uri)) return uri
  }
  return undefined
}

const DAY = 86_400_000

/** A private apt for one suite: its own sources, lists and archive cache, the machine's own mirror and keyring. */
export class Suite {
  private constructor(
    readonly name: string,
    private readonly options: readonly string[],
  ) {}

  /** Opens the suite; its package lists are fetched if they are missing or older than a day. */
  static async open(name: string, options: RigOptions = {}, kind: 'deb' | 'deb-src' = 'deb'): Promise<Suite> {
    const mirror = hostMirror()
    const folder = path.join(cacheRoot, 'apt', `${name}${kind === 'deb' ? '' : '-source'}-${keyOf(mirror)}`)
    for (const part of ['lists/partial', 'cache/archives/partial', 'parts']) {
      mkdirSync(path.join(folder, part), { recursive: true })
    }
    const sources = path.join(folder, 'sources.list')
    writeFileSync(sources, `${kind} [signed-by=${mirror.keyring}] ${mirror.uri} ${name} main\n`)
    const settings = {
      'Dir::Etc::SourceList': sources,
      'Dir::Etc::SourceParts': path.join(folder, 'parts'),
      'Dir::State::Lists': path.join(folder, 'lists'),
      'Dir::State::Status': '/dev/null',
      'Dir::Cache': path.join(folder, 'cache'),
      // The machine's hooks are about its own package lists.
      'APT::Update::Post-Invoke': '',
      'APT::Update::Post-Invoke-Success': '',
      'APT::Sandbox::User': 'root',
      'Acquire::Retries': '3',
    }
    const flags = Object.entries(settings).flatMap(([key, value]) => ['-o', `${key}=${value}`])
    const suite = new Suite(name, flags)
    const stamp = path.join(folder, 'updated')
    if (!existsSync(stamp) || Date.now() - statSync(stamp).mtimeMs > DAY) {
      options.progress?.(`fetching the package list of Debian ${name}`)
      await run('apt-get', ['-q', ...flags, 'update'], options)
      writeFileSync(stamp, '')
    }
    return suite
  }

  /** The direct dependencies of a package, by name; of alternatives the first. */
  async dependencies(name: string): Promise<string[]> {
    const text = await run('apt-cache', [...this.options, 'show', '--no-all-versions', name])
    const line = /^Depends: (.*)$/m.exec(text)?.[1] ?? ''
    return line.split(',').flatMap((item) => /^\s*([^\s(|]+)/.exec(item)?.[1] ?? [])
  }

  /** Downloads packages by name; gives the .deb files. */
  async download(names: readonly string[], into: string, options: RigOptions = {}): Promise<string[]> {
    await run('apt-get', ['-q', ...this.options, 'download', ...names], { ...options, cwd: into })
    return readdirSync(into)
      .filter((name) => name.endsWith('.deb'))
      .map((name) => path.join(into, name))
  }

  /** Downloads the source of a package and unpacks it, patched as Debian builds it, to a folder that must not exist. */
  async source(name: string, into: string, options: RigOptions = {}): Promise<void> {
    const parts = `${into}.dsc`
    mkdirSync(parts)
    // As the archive's index is signed and names the hash of each file, the file's own signature need not be checked again.
    await run('apt-get', ['-q', ...this.options, 'source', '--download-only', name], { ...options, cwd: parts })
    const description = readdirSync(parts).find((file) => file.endsWith('.dsc'))
    if (description === undefined) throw new Error(`apt-get gave no source of ${name}`)
    await run('dpkg-source', ['--no-check', '-x', path.join(parts, description), into], options)
    rmSync(parts, { recursive: true })
  }
}
