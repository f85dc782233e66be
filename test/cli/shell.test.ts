import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { cloudapp } from './cloudapp.js'

const scratch = mkdtempSync(path.join(tmpdir(), 'cloudapp-cli-'))
afterAll(() => rmSync(scratch, { recursive: true }))

describe('the shell', () => {
  it('lists the commands', async () => {
    const { code, stdout, stderr } = await cloudapp(['--help'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    expect(stdout).toMatch(/^ {2}vmi tasks {2,}\S/m)
    expect(stdout).toMatch(/Exit codes: 0 success, 1 failure .*, 2 wrong usage/)
  })

  it('prints the version of the package', async () => {
    const manifest = JSON.parse(readFileSync(path.resolve(import.meta.dirname, '../../package.json'), 'utf8'))
    expect(await cloudapp(['--version'])).toEqual({ code: 0, stdout: `${manifest.version}\n`, stderr: '' })
  })

  it('has help for every command it lists', async () => {
    const { stdout } = await cloudapp(['--help'])
    const names = [...stdout.matchAll(/^ {2}([a-z]+(?: [a-z]+)?) {2,}\S/gm)].map(([, name]) => name ?? '')
    expect(names.length).toBeGreaterThan(5)
    for (const name of names) {
      const help = await cloudapp([...name.split(' '), '--help'])
      expect(help).toMatchObject({ code: 0, stderr: '' })
      expect(help.stdout).toContain(`Usage: cloudapp ${name}`)
    }
  })

  it.each([
    [['vmi', 'taks'], "unknown command 'vmi taks'; did you mean 'cloudapp vmi tasks'?"],
    [['docter'], "unknown command 'docter'; did you mean 'cloudapp doctor'?"],
    [['frobnicate'], "unknown command 'frobnicate'; 'cloudapp --help' lists the commands"],
    [['vmi'], "cloudapp vmi: which one? 'vmi info'"],
    [['vmi', 'tasks', '--sourec', 'raw:x'], 'unknown option --sourec; did you mean --source?'],
    [['vmi', 'tasks'], '--source URI is missing'],
    [['vmi', 'tasks', '--source'], '--source needs a value'],
    [['vmi', 'tasks', '--source', 'a', '--source', 'b'], '--source is given twice'],
    [['vmi', 'tasks', '--source', 'raw:x', '--json=yes'], '--json takes no value'],
    [['vmi', 'tasks', '--source', 'raw:x', 'surplus'], "unexpected argument 'surplus'"],
    [['vmi', 'read', '--source', 'raw:x', '--address', 'abc', '--length', '1'], "not 'abc'"],
    [['vmi', 'read', '--source', 'raw:x', '--address', '0x10000000000000000', '--length', '1'], 'needs a number'],
    [['vmi', 'read', '--source', 'raw:x', '--address', '1', '--length', '0'], '--length is at least 1'],
    [['keys', 'generate'], 'FILE is missing'],
    [['doctor', '--__proto__', 'x'], 'unknown option --__proto__'],
    [[], 'Usage: cloudapp COMMAND'],
  ])('%j is wrong usage', async (args, message) => {
    const { code, stdout, stderr } = await cloudapp(args)
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' })
    expect(stderr).toContain(message)
  })
})

describe('a failure', () => {
  const missing = path.join(scratch, 'no-such-file')

  it('says what happened, on what, what to do next, and the code', async () => {
    const { code, stdout, stderr } = await cloudapp(['vmi', 'tasks', '--source', `raw:${missing}`])
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' })
    expect(stderr).toContain(missing)
    expect(stderr).toMatch(/what to do: /)
    expect(stderr).toMatch(/code: ERR_CLOUDAPP_(SOURCE|NOT_FOUND)$/m)
  })

  it('with --json is one document too', async () => {
    const { code, stdout } = await cloudapp(['vmi', 'tasks', '--source', `raw:${missing}`, '--json'])
    expect(code).toBe(1)
    expect(JSON.parse(stdout)).toMatchObject({ error: { code: expect.stringMatching(/^ERR_CLOUDAPP_/) } })
  })

  it('escapes control characters', async () => {
    const { stderr } = await cloudapp(['keys', 'show', path.join(scratch, 'a\u001b[31mb\u202ec')])
    expect(stderr).toContain('a\\x1b[31mb\\u{202e}c')
    expect(stderr).not.toContain('\u001b')
  })
})

describe('keys', () => {
  it('are made, private and never overwritten, and shown', async () => {
    const file = path.join(scratch, 'owner.key')
    const made = await cloudapp(['keys', 'generate', file, '--json'])
    expect(made).toMatchObject({ code: 0, stderr: '' })
    const { publicKey } = JSON.parse(made.stdout)
    expect(publicKey).toMatch(/^ed25519:/)
    expect(statSync(file).mode & 0o777).toBe(0o600)
    expect((await cloudapp(['keys', 'generate', file])).code).toBe(1)
    for (const key of [file, `${file}.pub`, publicKey]) {
      const shown = await cloudapp(['keys', 'show', key, '--json'])
      expect(JSON.parse(shown.stdout)).toMatchObject({ publicKey })
    }
  })
})

describe('doctor', () => {
  it('finds a source usable here and names a fix for everything that is not well', async () => {
    const { code, stdout, stderr } = await cloudapp(['doctor', '--json'])
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' })
    const report = JSON.parse(stdout)
    expect(report.usable).toBe(true)
    const names = report.checks.map((check: { name: string }) => check.name)
    expect(names).toEqual(expect.arrayContaining(['node', 'platform', 'native library', 'koffi', 'ffi-napi', 'cache']))
    for (const check of report.checks) expect(check.status === 'ok').toBe(check.fix === undefined)
  })

  it('fails with the path and the fix where the native library is missing', async () => {
    const env = { CLOUDAPP_NATIVE_LIB: path.join(scratch, 'absent.so') }
    const { code, stdout } = await cloudapp(['doctor'], env)
    expect(code).toBe(1)
    expect(stdout).toMatch(/native library +bad +.*absent\.so/)
    expect(stdout).toMatch(/^raw: +no/m)
  })

  it('fails where the chosen backend is no backend', async () => {
    const { code, stdout } = await cloudapp(['doctor', '--json'], { CLOUDAPP_FFI: 'dlopen' })
    expect(code).toBe(1)
    expect(JSON.parse(stdout).checks).toContainEqual(
      expect.objectContaining({ name: 'native library', status: 'bad', found: expect.stringContaining("'dlopen'") }),
    )
  })
})
