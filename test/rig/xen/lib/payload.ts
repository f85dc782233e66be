import { cpSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import path from 'node:path'
import { build } from 'esbuild'
import { cached, fileKey, keyOf, projectRoot } from '../../lib/cache.js'
import type { Kernel } from '../../lib/kernels.js'
import { copyPackage } from '../../lib/package.js'
import { run } from '../../lib/process.js'
import type { RigOptions } from '../../lib/types.js'

/** Where things are in dom0. */
export const APP = '/app'

/** Small, with room for what tests write, and everything in it root's. */
const IMAGE = ['-q', '-t', 'ext4', '-O', '^has_journal', '-m', '0', '-E', 'root_owner=0:0']

const C = ['-O2', '-Wall', '-Wextra', '-Werror', '-std=gnu11']

const PROGRAMS = path.join(projectRoot, 'test/rig/xen/programs')

function filesOf(folder: string): string[] {
  return readdirSync(folder, { recursive: true, encoding: 'utf8' })
    .map((name) => path.join(folder, name))
    .filter((file) => statSync(file).isFile())
    .sort()
}

/** The tests' programs, and the demo's parties. */
function programs(): Record<string, string> {
  const tests = readdirSync(PROGRAMS).filter((file) => file.endsWith('.ts'))
  const examples = ['ids/main', 'client/main', 'demo/probe']
  return Object.fromEntries([
    ...tests.map((file) => [file.replace(/\.ts$/, ''), path.join(PROGRAMS, file)]),
    ...examples.map((name) => [name.replace(/\/main$|^demo\//, ''), path.join(projectRoot, 'examples', `${name}.ts`)]),
  ])
}

/**
 * What dom0 and guests with Node find at /app, as an ext4 image: the package as npm would install it, built from the sources as they are;
 * the tests' programs; the guests' kernel. Cached by the content of all of these.
 */
export async function payload(kernel: Kernel, options: RigOptions = {}): Promise<string> {
  const native = path.join(projectRoot, 'native/libvmi-shim')
  await run('make', ['-s', '-C', native], options)
  const at = (name: string): string => path.join(projectRoot, name)
  const built = ['libcloudapp_shim.so', 'cloudapp-event-agent'].map((name) => `native/libvmi-shim/build/${name}`)
  const inputs = ['package.json', 'package-lock.json', 'tsup.config.ts', ...built]
  const files = [
    ...inputs.map(at),
    ...filesOf(at('src')),
    ...filesOf(at('examples')),
    ...filesOf(PROGRAMS),
    // Programs share what they measure with.
    ...filesOf(at('bench')),
    ...filesOf(at('test/rig/xen/native')),
    kernel.vmlinuz,
  ]
  const folder = await cached(
    'xen-payload',
    keyOf(files, ...files.map(fileKey), IMAGE, C),
    async (into) => {
      options.progress?.('building the package for dom0')
      const app = path.join(into, 'app')
      mkdirSync(app)
      const dist = path.join(into, 'dist')
      await run(at('node_modules/.bin/tsup'), ['--out-dir', dist, '--silent'], { ...options, cwd: projectRoot })
      copyPackage(path.join(app, 'node_modules'), dist)
      for (const [name, source] of Object.entries(programs())) {
        await build({
          entryPoints: [source],
          outfile: path.join(app, `${name}.mjs`),
          bundle: true,
          packages: 'external',
          tsconfigRaw: '{}',
          format: 'esm',
          platform: 'node',
          target: 'node20',
          logLevel: 'silent',
        })
      }
      for (const name of readdirSync(PROGRAMS).filter((file) => file.endsWith('.c'))) {
        const binary = path.join(app, name.replace(/\.c$/, ''))
        await run('gcc', [...C, path.join(PROGRAMS, name), '-o', binary], options)
      }
      const shim = filesOf(path.join(native, 'src')).filter((file) => file.endsWith('.c'))
      const include = [`-I${native}/include`, `-I${native}/src`]
      const events = [...C, '-fno-strict-aliasing', ...include, at('test/rig/xen/native/events.c'), ...shim]
      await run('gcc', [...events, '-o', path.join(app, 'events'), '-ldl', '-pthread'], options)
      cpSync(at('examples/ids/cloudapp.json'), path.join(app, 'cloudapp.json'))
      cpSync(kernel.vmlinuz, path.join(app, 'vmlinuz'))
      await run('/sbin/mke2fs', [...IMAGE, '-d', app, path.join(into, 'app.img'), '160M'], options)
      for (const part of [app, dist]) rmSync(part, { recursive: true })
    },
    options,
  )
  return path.join(folder, 'app.img')
}

/** A program of test/rig/xen/programs, in dom0. */
export const program = (name: string): string => path.posix.join(APP, `${name}.mjs`)
