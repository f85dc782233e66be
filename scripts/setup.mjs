// Makes a fresh Debian 12 machine ready for the tests and the demo: Debian packages, npm packages, the native library, the
// built package. Says what it does; does nothing that is done already. Exits 2, naming the exact command, for what only a
// person can mend. Node's own modules only: it runs before npm install.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

const root = resolve(import.meta.dirname, '..')

const PACKAGES = [
  // The native library, its tests and its fuzz target.
  'gcc',
  'make',
  'libc6-dev',
  'clang',
  // The VMs: emulator, what is in them, and the module that is built for them.
  'qemu-system-x86',
  'busybox-static',
  'kmod',
  'xz-utils',
  'linux-image-amd64',
  'linux-headers-amd64',
  'debian-archive-keyring',
]

const say = (text) => process.stdout.write(`set-up: ${text}\n`)

function giveUp(...lines) {
  for (const line of lines) process.stderr.write(`set-up: ${line}\n`)
  process.exit(2)
}

/** Runs a program with its output going through; ends the set-up if it fails. */
function must(program, args, options = {}) {
  const { status, error } = spawnSync(program, args, {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    ...options,
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive', ...options.env },
  })
  if (error) giveUp(`${program} could not be started: ${error.message}`)
  if (status !== 0) {
    process.stderr.write(`set-up: ${program} ${args.join(' ')} failed with exit code ${status}\n`)
    process.exit(1)
  }
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19)) {
    giveUp(`Node 20.19 or later is needed, this is ${process.versions.node}`, 'get it from https://nodejs.org/')
  }
}

function installed(name) {
  const { stdout } = spawnSync('dpkg-query', ['-s', name], { encoding: 'utf8' })
  return /^Status: install ok installed$/m.test(stdout ?? '')
}

function debianPackages() {
  const isDebian = existsSync('/etc/debian_version') && existsSync('/usr/bin/apt-get')
  const command = `apt-get update && apt-get install -y --no-install-recommends ${PACKAGES.join(' ')}`
  if (!isDebian) giveUp('this is no Debian; on Debian 12 this command gives all that is needed:', `  ${command}`)
  const absent = PACKAGES.filter((name) => !installed(name))
  if (absent.length === 0) return
  if (process.getuid() !== 0) giveUp(`not installed: ${absent.join(', ')}; as root, run:`, `  ${command}`)
  say(`installing Debian packages: ${absent.join(' ')}`)
  must('apt-get', ['-q', 'update'])
  must('apt-get', ['-q', 'install', '-y', '--no-install-recommends', ...absent])
}

function npmPackages() {
  const lock = createHash('sha256')
    .update(readFileSync(join(root, 'package-lock.json')))
    .digest('hex')
  const stamp = join(root, 'node_modules', '.cloudapp-lock')
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === lock) return
  say('installing npm packages')
  must('npm', ['ci', '--no-audit', '--no-fund'])
  writeFileSync(stamp, lock)
}

function newest(path) {
  const stat = statSync(path)
  if (!stat.isDirectory()) return stat.mtimeMs
  return Math.max(stat.mtimeMs, ...readdirSync(path).map((name) => newest(join(path, name))))
}

function build() {
  say('building the native library')
  must('make', ['-s', '-C', join(root, 'native', 'libvmi-shim')])
  const inputs = ['src', 'package.json', 'tsup.config.ts', 'tsconfig.json'].map((name) => join(root, name))
  // The declarations are written last.
  const built = join(root, 'dist', 'index.d.ts')
  if (existsSync(built) && statSync(built).mtimeMs > Math.max(...inputs.map(newest))) return
  say('building the package')
  must('npm', ['run', '--silent', 'build'])
}

checkNode()
debianPackages()
npmPackages()
build()
say('ready')
