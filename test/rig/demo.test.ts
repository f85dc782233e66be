import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { expect, test } from 'vitest'
import { projectRoot } from './lib/index.js'

/** Runs the demo as its user does, without the set-up that comes before it. */
async function demo(): Promise<{ pid: number | undefined; code: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, ['--import', './scripts/ts.mjs', 'examples/demo/main.ts'], {
    cwd: projectRoot,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const said = { stdout: '', stderr: '' }
  child.stdout.on('data', (chunk) => {
    said.stdout += chunk
  })
  child.stderr.on('data', (chunk) => {
    said.stderr += chunk
  })
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve))
  return { pid: child.pid, code, ...said }
}

/** Folders a process made and did not remove: each says whose it is. */
function leftBy(pid: number | undefined): string[] {
  return [tmpdir(), '/dev/shm'].flatMap((parent) =>
    readdirSync(parent)
      .filter((name) => /^cloudapp-(demo|rig)-/.test(name))
      .map((name) => path.join(parent, name, 'owner'))
      .filter((owner) => existsSync(owner) && readFileSync(owner, 'utf8').startsWith(`${pid} `)),
  )
}

// Each step of the demo checks what it says and ends it with status 1 if that is not so; here, that no step is missing.
test('the main job works through every party and leaves nothing behind', async () => {
  const { pid, code, stdout, stderr } = await demo()
  expect(stderr).toBe('')
  expect(stdout).toMatch(/ps in the VM does not show pid \d+ any more/)
  expect(stdout).toMatch(/lsmod and \/sys\/module do not show the module/)
  expect(stdout).toMatch(/\(uid 64001\) can open neither RAM file nor QMP socket: EACCES, EACCES/)
  expect(stdout).toMatch(/\(uid 64002\) can open neither RAM file nor QMP socket: EACCES, EACCES/)
  expect(stdout).toMatch(/attached to web-1: Linux \S+, in \d+ ms, with no configuration/)
  expect(stdout).toMatch(/the hidden process: Hidden process \d+ \(sh\)/)
  expect(stdout).toMatch(/the hidden module: Hidden kernel module shade/)
  expect(stdout).toMatch(/getdents64 is diverted by ftrace at __x64_sys_getdents64\+0x/)
  expect(stdout).toMatch(/kill is diverted by a patched jump at __x64_sys_kill\+0x/)
  expect(stdout).toMatch(/writing memory is refused \(ERR_CLOUDAPP_DENIED\)/)
  expect(stdout).toMatch(/20 scans done/)
  expect(stdout).toMatch(/findings: 0/)
  expect(stdout).toMatch(/the next scan fails with ERR_CLOUDAPP_REVOKED/)
  expect(stdout).toMatch(/it verifies against the head the customer holds: sound/)
  expect(stdout).toMatch(/with one byte changed it does not: .* record \d+ has been changed/)
  expect(stdout).toMatch(/with its end cut off it does not/)
  expect(code).toBe(0)
  expect(leftBy(pid)).toEqual([])
})
