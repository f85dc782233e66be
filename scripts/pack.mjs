// npm run pack [-- FOLDER] [--built]: builds everything (not with --built) and leaves the tarballs of both packages in
// FOLDER (default build/tarballs).
// They have the same version; @cloudapp/sdk names the native one as an optional dependency of exactly that version.
import { execFileSync } from 'node:child_process'
import { copyFileSync, cpSync, mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'

const root = resolve(import.meta.dirname, '..')
const words = process.argv.slice(2)
const target = resolve(words.find((word) => !word.startsWith('-')) ?? join(root, 'build', 'tarballs'))
const json = (file) => JSON.parse(readFileSync(join(root, file), 'utf8'))

const sdk = json('package.json')
const native = json('packages/linux-x64/package.json')
if (native.version !== sdk.version || sdk.optionalDependencies[native.name] !== sdk.version) {
  throw new Error(`${native.name} must be of version ${sdk.version}, and named so in optionalDependencies`)
}

const npm = (...args) => execFileSync('npm', args, { cwd: root, stdio: ['ignore', 'inherit', 'inherit'] })
if (!words.includes('--built')) {
  npm('run', 'build:native')
  npm('run', 'build')
}

// The binaries are put beside their manifest only in a copy, so that no old one lies in the tree.
const stage = join(root, 'build', 'stage', 'linux-x64')
rmSync(stage, { recursive: true, force: true })
cpSync(join(root, 'packages', 'linux-x64'), stage, { recursive: true })
const binaries = ['libcloudapp_shim.so', 'cloudapp-event-agent']
for (const name of binaries) copyFileSync(join(root, 'native/libvmi-shim/build', name), join(stage, name))
copyFileSync(join(root, 'LICENSE'), join(stage, 'LICENSE'))
for (const name of binaries) execFileSync('strip', ['--strip-unneeded', join(stage, name)])

rmSync(target, { recursive: true, force: true })
mkdirSync(target, { recursive: true })
const pack = (folder) => npm('pack', '--silent', folder, '--pack-destination', target)
pack(stage)
pack(root)
