// Makes a fresh Debian 12 machine ready for the tests and the demo: Debian packages, npm packages, the native library, the
// built package. Says what it does; does nothing that is done already. Exits 2, naming the exact command, for what only a
// person can mend. Node's own modules only: it runs before npm install.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'

const root = resolve(import.meta.dirname, '..')
/** Says why, where VMs can not be booted; `npm test` counts what it skips for it, and the demo gives up. */
const rigUnavailable = join(root, 'build', 'rig-unavailable')

/** The native library, its tests under sanitizers and its fuzz target. Nothing goes without. */
const BUILD = ['gcc', 'make', 'libc6-dev', 'clang', 'libclang-rt-14-dev']
/** The VMs: emulator, what is in them, and the module that is built for them. */
const RIG = [
  'qemu-system-x86',
  'busybox-static',
  'mmdebstrap',
  'cpio',
  'e2fsprogs',
  'kmod',
  'util-linux',
  'xz-utils',
  'linux-image-amd64',
  'linux-headers-amd64',
  'debian-archive-keyring',
  // A Xen with XSM, and its policies.
  'dpkg-dev',
  'bison',
  'flex',
  'python3',
  'm4',
  'checkpolicy',
  // libxenvchan's header: what our vchan is tested against, loaded at run time in the rig.
  'libxen-dev',
]

const say = (text) => process.stdout.write(`set-up: ${text}\n`)

function giveUp(...lines) {
  for (const line of lines) process.stderr.write(`set-up: ${line}\n`)
  process.exit(2)
}

/** Runs a program with its output going through; true if it succeeded. */
function ran(program, args) {
  const { status, error } = spawnSync(program, args, {
    cwd: root,
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  })
  if (error) giveUp(`${program} could not be started: ${error.message}`)
  return status === 0
}

/** Runs a program whose output only matters if it fails, and then ends the set-up. */
function mustQuietly(program, args) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd: root, encoding: 'utf8' })
  if (error) giveUp(`${program} could not be started: ${error.message}`)
  if (status === 0) return
  process.stderr.write(`${stdout}${stderr}set-up: ${program} ${args.join(' ')} failed with exit code ${status}\n`)
  process.exit(1)
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19)) {
    giveUp(`Node 20.19 or later is needed, this is ${process.versions.node}`, 'get it from https://nodejs.org/')
  }
}

/** Those of the packages that are not installed. */
function absentOf(names) {
  // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query's own syntax
  const format = ['-f', '${Package} ${db:Status-Status}\\n']
  const { stdout } = spawnSync('dpkg-query', ['-W', ...format, ...names], { encoding: 'utf8' })
  const installed = new Set((stdout ?? '').split('\n').flatMap((line) => /^(\S+) installed$/.exec(line)?.[1] ?? []))
  return names.filter((name) => !installed.has(name))
}

/** A kernel and its headers of one release: an older image than the headers that came later is of no use. */
function kernelHasHeaders() {
  const releases = existsSync('/lib/modules') ? readdirSync('/lib/modules') : []
  return releases.some((name) => existsSync(`/boot/vmlinuz-${name}`) && existsSync(`/usr/src/linux-headers-${name}`))
}

function absentForRig() {
  const absent = absentOf(RIG)
  return absent.length > 0 || kernelHasHeaders() ? absent : ['linux-image-amd64', 'linux-headers-amd64']
}

const INSTALL = 'apt-get install -y --no-install-recommends'

function debianPackages() {
  const event = process.env.npm_lifecycle_event ?? 'demo'
  const again = event === 'test' ? 'npm test' : `npm run ${event}`
  const release = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : ''
  if (!/^ID=debian$/m.test(release) || !existsSync('/usr/bin/apt-get')) {
    const commands = ['qemu-system-x86_64', 'mmdebstrap', 'clang', 'gcc', 'make', 'busybox', 'cpio', 'setpriv']
    const absent = commands.filter((name) => spawnSync('sh', ['-c', `command -v ${name}`]).status !== 0)
    giveUp(
      `this is no Debian, of whose kernel and packages the VMs are made; also missing: ${absent.join(', ') || 'nothing'}`,
      'on Debian 12, as root, this command gives all that is needed:',
      `  apt-get update && ${INSTALL} ${[...BUILD, ...RIG].join(' ')} && ${again}`,
    )
  }
  const build = absentOf(BUILD)
  const rig = absentForRig()
  const absent = [...build, ...rig]
  const command = `apt-get update && ${INSTALL} ${absent.join(' ')}`
  if (process.getuid() !== 0) {
    giveUp(
      `not root, which the parties' own uids need${absent.length > 0 ? `; not installed: ${absent.join(', ')}` : ''}`,
      'as root, run:',
      `  ${absent.length > 0 ? `${command} && ` : ''}${again}`,
    )
  }
  rmSync(rigUnavailable, { force: true })
  if (absent.length === 0) return
  say(`installing Debian packages: ${absent.join(' ')}`)
  const apt = (...args) => ran('apt-get', ['-q', '-o', 'DPkg::Lock::Timeout=300', ...args])
  const install = (names) => names.length === 0 || apt('install', '-y', '--no-install-recommends', ...names)
  const listed = apt('update')
  if (!install(build)) giveUp('the packages could not be installed; mend that, or run yourself:', `  ${command}`)
  if (!install(rig)) {
    const missing = absentForRig().join(', ')
    const why = `no VMs can be booted here: ${missing} could not be installed${listed ? '' : ' (apt-get update failed)'}`
    say(why)
    mkdirSync(dirname(rigUnavailable), { recursive: true })
    writeFileSync(rigUnavailable, why)
  }
}

function npmPackages() {
  const lock = createHash('sha256')
    .update(readFileSync(join(root, 'package-lock.json')))
    .digest('hex')
  const stamp = join(root, 'node_modules', '.cloudapp-lock')
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === lock) return
  say('installing npm packages (about half a minute)')
  mustQuietly('npm', ['ci', '--no-audit', '--no-fund'])
  writeFileSync(stamp, lock)
}

function newest(path) {
  const stat = statSync(path)
  if (!stat.isDirectory()) return stat.mtimeMs
  return Math.max(stat.mtimeMs, ...readdirSync(path).map((name) => newest(join(path, name))))
}

function build() {
  const shim = join(root, 'native', 'libvmi-shim')
  if (spawnSync('make', ['-q', '-C', shim], { stdio: 'ignore' }).status !== 0) {
    say('building the native library')
    mustQuietly('make', ['-s', '-C', shim])
  }
  const inputs = ['src', 'package.json', 'tsup.config.ts', 'tsconfig.json'].map((name) => join(root, name))
  // The declarations are written last.
  const built = join(root, 'dist', 'index.d.ts')
  if (existsSync(built) && statSync(built).mtimeMs > Math.max(...inputs.map(newest))) return
  say('building the package')
  mustQuietly('npm', ['run', '--silent', 'build'])
}

checkNode()
debianPackages()
npmPackages()
build()
say('ready')
