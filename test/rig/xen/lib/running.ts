import type { XenGuest } from './guest.js'
import { APP } from './payload.js'

/** What a guest needs for vchans: event channels, grants and xenstore. */
export const VCHAN_MODULES = ['xen-evtchn', 'xen-gntdev', 'xen-gntalloc', 'xenfs']

/** A program that goes on in a guest. */
export interface Running {
  /** Waits for a line like this, and gives it. No single quotes. */
  said(pattern: string): Promise<string>
  /** Waits for its end, and gives all it said. */
  end(): Promise<string>
  /** All it has said so far. */
  soFar(): Promise<string>
  pid(): Promise<string>
}

let serial = 0

/** Starts a program in a guest, in the folder of the package's programs, in the background. */
export async function running(guest: XenGuest, line: string): Promise<Running> {
  const log = `/tmp/running-${serial++}`
  // exec twice: the pid is the program's own.
  await guest.run(`cd ${APP}; (echo $$ > /dev/null; exec sh -c 'echo $$ > ${log}.pid; exec ${line}') > ${log} 2>&1 &`)
  const wait = (until: string) =>
    guest.run(`timeout 300 sh -c 'until ${until}; do sleep 0.3; done' || { cat ${log}; exit 1; }; cat ${log}`, {
      timeoutMs: 330_000,
    })
  const gone = `[ -e ${log}.pid ] && ! [ -e /proc/$(cat ${log}.pid)/exe ]`
  return {
    async said(pattern) {
      const { stdout } = await wait(`grep -qE "${pattern.replaceAll('"', '\\"')}" ${log} || { ${gone}; }`)
      const line = stdout.split('\n').find((text) => new RegExp(pattern).test(text))
      if (line === undefined) throw new Error(`It ended without '${pattern}':\n${stdout}`)
      return line
    },
    end: async () => (await wait(gone)).stdout,
    soFar: async () => (await guest.run(`cat ${log}`)).stdout,
    pid: async () => (await guest.run(`cat ${log}.pid`)).stdout.trim(),
  }
}
