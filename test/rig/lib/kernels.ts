import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { Suite } from './apt.js'
import { cached, cacheRoot, keyOf } from './cache.js'
import { run } from './process.js'
import type { RigOptions } from './types.js'

/** A Debian kernel: `suite` as on the mirror, `package` a kernel or a metapackage such as linux-image-amd64. */
export interface KernelSpec {
  readonly suite: string
  readonly package: string
}

/** A kernel ready to boot. */
export interface Kernel {
  /** `uname -r`. */
  readonly release: string
  readonly vmlinuz: string
  /** The folder with modules.dep and kernel/. */
  readonly modules: string
  /** Where it was downloaded from; absent for the machine's own. */
  readonly spec?: KernelSpec
}

/** Names for the kernels the tests use. */
export const KERNELS = {
  '5.10': { suite: 'bullseye', package: 'linux-image-amd64' },
  '6.1-rt': { suite: 'bookworm', package: 'linux-image-rt-amd64' },
  '6.1-cloud': { suite: 'bookworm', package: 'linux-image-cloud-amd64' },
  '6.12-bpo': { suite: 'bookworm-backports', package: 'linux-image-amd64' },
  '6.12-cloud': { suite: 'bookworm-backports', package: 'linux-image-cloud-amd64' },
  '6.12-trixie': { suite: 'trixie', package: 'linux-image-amd64' },
  sid: { suite: 'sid', package: 'linux-image-amd64' },
} as const satisfies Record<string, KernelSpec>

export type KernelName = '6.1' | keyof typeof KERNELS

/**
 * A kernel by name or by suite and package. `6.1` is the newest linux-image-6.1.* installed on this machine; every
 * other one is downloaded and unpacked into the cache, not installed.
 */
export async function kernel(which: KernelName | KernelSpec, options: RigOptions = {}): Promise<Kernel> {
  if (which !== '6.1') return unpacked(typeof which === 'string' ? KERNELS[which] : which, options)
  return installed('/') ?? unpacked({ suite: 'bookworm', package: 'linux-image-amd64' }, options)
}

const byVersion = new Intl.Collator('en', { numeric: true }).compare

function installed(root: string): Kernel | undefined {
  const releases = existsSync('/lib/modules') ? readdirSync('/lib/modules') : []
  const plain = releases.filter((name) => /^6\.1\.0-\d+-amd64$/.test(name)).sort(byVersion)
  // One whose headers are there too comes first: the rootkit is built for it.
  const headed = (release: string): boolean => existsSync(`/usr/src/linux-headers-${release}`)
  for (const release of plain.reverse().sort((a, b) => Number(headed(b)) - Number(headed(a)))) {
    const vmlinuz = path.join(root, 'boot', `vmlinuz-${release}`)
    const modules = path.join(root, 'lib/modules', release)
    if (existsSync(vmlinuz) && existsSync(path.join(modules, 'modules.dep'))) return { release, vmlinuz, modules }
  }
  return undefined
}

async function unpacked(spec: KernelSpec, options: RigOptions): Promise<Kernel> {
  // The name a metapackage led to is kept, so that a warm cache needs no network and a test its kernel unchanged.
  const pointer = path.join(cacheRoot, `kernel-${keyOf(spec)}.json`)
  if (existsSync(pointer)) {
    const kernel = JSON.parse(readFileSync(pointer, 'utf8')) as Kernel
    if (existsSync(kernel.vmlinuz)) return kernel
  }
  const suite = await Suite.open(spec.suite, options)
  let image = spec.package
  for (let hop = 0; hop < 3 && !/^linux-image-\d/.test(image); hop++) {
    const next = (await suite.dependencies(image)).find((name) => name.startsWith('linux-image-'))
    if (!next) throw new Error(`${image} in Debian ${spec.suite} leads to no kernel image`)
    image = next
  }
  const parts = (await suite.dependencies(image)).filter((name) => /^linux-(binary|modules)-/.test(name))
  const folder = await cached(
    image,
    keyOf(spec.suite),
    async (into) => {
      options.progress?.(`downloading ${image} from Debian ${spec.suite}`)
      await unpackInto(suite, [image, ...parts], into, options)
      if (!existsSync(path.join(into, 'lib'))) symlinkSync('usr/lib', path.join(into, 'lib'))
      const [release] = readdirSync(path.join(into, 'lib/modules'))
      if (release) await run('depmod', ['-b', into, release], options)
    },
    options,
  )
  const [release = ''] = readdirSync(path.join(folder, 'lib/modules'))
  const modules = path.join(folder, 'lib/modules', release)
  const vmlinuz = [path.join(folder, 'boot', `vmlinuz-${release}`), path.join(modules, 'vmlinuz')].find(existsSync)
  if (!vmlinuz) throw new Error(`${image} holds no vmlinuz`)
  const result: Kernel = { release, vmlinuz, modules, spec }
  writeFileSync(pointer, JSON.stringify(result))
  return result
}

async function unpackInto(suite: Suite, packages: readonly string[], into: string, options: RigOptions): Promise<void> {
  const debs = path.join(into, 'debs')
  mkdirSync(debs)
  for (const deb of await suite.download(packages, debs, options)) await run('dpkg-deb', ['-x', deb, into], options)
  rmSync(debs, { recursive: true })
}

/** The folder to give to `make -C` to build a module for this kernel. */
export async function kernelHeaders(kernel: Kernel, options: RigOptions = {}): Promise<string> {
  const own = path.join('/usr/src', `linux-headers-${kernel.release}`)
  if (!kernel.spec && existsSync(path.join(own, 'Makefile'))) return own
  const suite = await Suite.open(kernel.spec?.suite ?? 'bookworm', options)
  const name = `linux-headers-${kernel.release}`
  const folder = await cached(
    name,
    keyOf(suite.name, 1),
    async (into) => {
      options.progress?.(`downloading ${name} from Debian ${suite.name}`)
      const parts = (await suite.dependencies(name)).filter((part) => /^linux-(headers|kbuild)-/.test(part))
      await unpackInto(suite, [name, ...parts], into, options)
      // Debian's header packages find each other by relative links, but for one absolute include.
      const makefile = path.join(into, 'usr/src', name, 'Makefile')
      const sources = path.join(path.dirname(into), path.basename(into).replace(/\.partial$/, ''), 'usr/src/')
      writeFileSync(makefile, readFileSync(makefile, 'utf8').replaceAll('/usr/src/', sources))
    },
    options,
  )
  return path.join(folder, 'usr/src', name)
}
