import { execFileSync } from 'node:child_process'
import { existsSync, readdirSync, statSync } from 'node:fs'
import path from 'node:path'

const root = path.resolve(import.meta.dirname, '../..')
const native = 'native/libvmi-shim'
const inputs = ['src', `${native}/src`, `${native}/agent`, `${native}/include`, 'package.json', 'tsup.config.ts']

function newest(file: string): number {
  const stat = statSync(file)
  if (!stat.isDirectory()) return stat.mtimeMs
  return Math.max(0, ...readdirSync(file).map((name) => newest(path.join(file, name))))
}

/** Builds the package before the tests that look at what was built, unless the last build is of these sources. */
export default function build(): void {
  const built = path.join(root, 'dist/index.d.ts')
  const [library = '', agent = ''] = ['libcloudapp_shim.so', 'cloudapp-event-agent'].map((name) =>
    path.join(root, native, 'build', name),
  )
  const wanted = Math.max(...inputs.map((input) => newest(path.join(root, input))))
  if ([built, library, agent].every((file) => existsSync(file) && statSync(file).mtimeMs >= wanted)) return
  execFileSync('npm', ['run', 'build:native'], { cwd: root, stdio: 'inherit' })
  execFileSync('npm', ['run', 'build'], { cwd: root, stdio: 'inherit' })
}
