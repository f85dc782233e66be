import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Consumer, manifest, pack, root, subpaths } from './packed.js'

let packed: ReturnType<typeof pack>
beforeAll(() => {
  packed = pack()
})
afterAll(() => rmSync(packed.folder, { recursive: true, force: true }))

describe.each([['the npm of this machine'], ['npm@10']])('installed by %s where there is no compiler', (npm) => {
  const consumer = new Consumer()
  afterAll(() => consumer[Symbol.dispose]())

  beforeAll(() => {
    const install = ['install', '--ignore-scripts', '--no-audit', '--no-fund', ...packed.tarballs]
    const args = npm === 'npm@10' ? ['exec', '--yes', '--package=npm@10', '--', 'npm', ...install] : install
    // `npm exec` runs its program through a shell: the one thing on this PATH that is not node or npm.
    const shell: Record<string, string> = npm === 'npm@10' ? { npm_config_script_shell: '/bin/sh' } : {}
    const { code, stderr } = consumer.run('npm', args, shell)
    expect(code, stderr).toBe(0)
    if (npm !== 'npm@10') return
    const used = consumer.run('npm', [...args.slice(0, args.indexOf('--')), '--', 'npm', '--version'], shell)
    expect(used.stdout).toMatch(/^10\./)
  })

  it('has no compiler to fall back to', () => {
    for (const program of ['cc', 'gcc', 'clang', 'make', 'python3', 'node-gyp']) {
      const found = consumer.script(
        `import { spawnSync } from 'node:child_process'; console.log(spawnSync('${program}').error?.code)`,
      )
      expect(found.stdout.trim()).toBe('ENOENT')
    }
  })

  it.each(subpaths)('%s can be imported and required', (subpath) => {
    // syscall and nested are types only: an empty module is right for them.
    const { code, stdout, stderr } = consumer.script(
      `import { createRequire } from 'node:module'
      const imported = await import('${subpath}')
      const required = createRequire(import.meta.url)('${subpath}')
      console.log(Object.keys(imported).join() === Object.keys(required).join())`,
    )
    expect({ code, stdout, stderr }).toEqual({ code: 0, stdout: 'true\n', stderr: '' })
  })

  it('runs cloudapp doctor with the packed native library', () => {
    const main = path.join(consumer.folder, 'node_modules/.bin/cloudapp')
    const { code, stdout, stderr } = consumer.run(main, ['doctor', '--json'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const native = JSON.parse(stdout).checks.find((check: { name: string }) => check.name === 'native library')
    expect(native.status).toBe('ok')
    expect(native.found).toContain('node_modules/@cloudapp/sdk-linux-x64/libcloudapp_shim.so')
    expect(consumer.run(main, ['--version']).stdout).toBe(`${manifest.version}\n`)
    // Without it the broker marks its whole heap again and again for what it hands out (docs/design.md).
    expect(readFileSync(main, 'utf8').split('\n', 1)).toEqual(['#!/usr/bin/env -S node --initial-heap-size=64'])
  })
})

describe('what was packed', () => {
  const consumer = new Consumer()
  afterAll(() => consumer[Symbol.dispose]())
  beforeAll(() => {
    const { code, stderr } = consumer.run('npm', [
      'install',
      '--ignore-scripts',
      '--no-audit',
      '--no-fund',
      ...packed.tarballs,
    ])
    expect(code, stderr).toBe(0)
  })

  /** The shared objects in a process that ran this module: what of it is native. */
  const nativeOf = (text: string): string[] => {
    const { code, stdout, stderr } = consumer.script(
      `${text}\nconsole.log(JSON.stringify(process.report.getReport().sharedObjects))`,
    )
    expect(code, stderr).toBe(0)
    const objects: string[] = JSON.parse(stdout.trim().split('\n').at(-1) ?? '[]')
    return objects.filter((file) => file.includes('node_modules'))
  }

  it('loads no native code for ./client', () => {
    expect(nativeOf("await import('@cloudapp/sdk/client')")).toEqual([])
  })

  it('does load it to open a VM', () => {
    writeFileSync(path.join(consumer.folder, 'ram'), Buffer.alloc(1 << 20))
    const loaded = nativeOf(
      "const { openVm } = await import('@cloudapp/sdk/vmi'); const vm = await openVm('raw:ram'); await vm.close()",
    )
    expect(loaded).toContainEqual(expect.stringMatching(/koffi\.node$/))
    expect(loaded).toContainEqual(expect.stringMatching(/libcloudapp_shim\.so$/))
  })

  it('has types that compile for every subpath, without skipLibCheck of ours', () => {
    const imports = subpaths.map((subpath, i) => `import * as m${i} from '${subpath}'\nvoid m${i}\n`)
    writeFileSync(path.join(consumer.folder, 'types.ts'), imports.join(''))
    const compilerOptions = {
      strict: true,
      noEmit: true,
      target: 'ES2022',
      module: 'NodeNext',
      lib: ['ES2023', 'ESNext.Disposable'],
      typeRoots: [path.join(root, 'node_modules/@types')],
      types: ['node'],
      skipLibCheck: false,
    }
    writeFileSync(path.join(consumer.folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['types.ts'] }))
    const { stdout } = consumer.run('node', [path.join(root, 'node_modules/typescript/bin/tsc'), '-p', '.'])
    expect(stdout.split('\n').filter((line) => line.includes('@cloudapp') || line.startsWith('types.ts'))).toEqual([])
  })

  it('is clean for publint and are-the-types-wrong', () => {
    const sdk = packed.tarballs.find((file) => !file.includes('linux-x64')) ?? ''
    const publint = consumer.run('node', [path.join(root, 'node_modules/publint/src/cli.js'), '--strict', sdk])
    expect(publint.code, publint.stdout + publint.stderr).toBe(0)
    const attw = path.join(root, 'node_modules/@arethetypeswrong/cli/dist/index.js')
    const types = consumer.run('node', [attw, sdk, '--profile', 'esm-only', '--no-emoji', '--no-color'])
    expect(types.code, types.stdout + types.stderr).toBe(0)
  })

  it('holds no source, test or secret', () => {
    const list = readdirSync(path.join(consumer.folder, 'node_modules/@cloudapp/sdk')).sort()
    expect(list).toEqual(['CHANGELOG.md', 'LICENSE', 'README.md', 'SECURITY.md', 'dist', 'package.json'])
    const native = readdirSync(path.join(consumer.folder, 'node_modules/@cloudapp/sdk-linux-x64')).sort()
    expect(native).toEqual(['LICENSE', 'README.md', 'cloudapp-event-agent', 'libcloudapp_shim.so', 'package.json'])
  })
})
