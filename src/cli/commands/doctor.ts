import { defaultCacheDirectory } from '../../vmi/linux/cache.js'
import type { Command, Output } from '../command.js'
import type { Check, SourceVerdict } from '../doctor/check.js'
import { checkEvents } from '../doctor/events.js'
import { checkCache, checkNode, checkPermissions, checkPlatform, checkQemu } from '../doctor/host.js'
import { libvmiVerdict } from '../doctor/libvmi.js'
import { checkBackend, checkNative } from '../doctor/native.js'
import { checkXen, xenVerdict } from '../doctor/xen.js'
import { checkXsm } from '../doctor/xsm.js'
import { version } from '../version.js'

export const command: Command = {
  summary: 'Check what this host can do, and how to get what it lacks',
  help: 'Exits 0 if at least one kind of source of guest memory can be used here, otherwise 1.',
  options: {},
  json: true,
  async run({ out }) {
    const native = checkNative()
    const checks = [
      checkNode(),
      checkPlatform(),
      native,
      checkBackend('koffi'),
      checkBackend('ffi-napi'),
      checkPermissions(),
      checkCache(defaultCacheDirectory()),
      checkQemu(),
      ...checkXen(),
      ...(await checkEvents()),
      ...(await checkXsm()),
    ]
    const sources = await verdicts(native)
    const usable = sources.some((source) => source.usable)
    if (out.isJson) out.json({ version: version(), usable, checks, sources })
    else print(out, checks, sources)
    return usable ? 0 : 1
  },
}

/** These sources read files through the native library; the VM's files decide the rest when one is opened. */
async function verdicts(native: Check): Promise<SourceVerdict[]> {
  const usable = native.status === 'ok'
  const why = usable ? 'the native library loads' : 'the native library does not load'
  const files = ['raw', 'elf', 'lime', 'qemu'].map((kind) => ({ kind, usable, why }))
  return usable ? [...files, xenVerdict(), await libvmiVerdict()] : files
}

function print(out: Output, checks: readonly Check[], sources: readonly SourceVerdict[]): void {
  out.table(
    [{ title: 'CHECK' }, { title: 'STATUS' }, { title: 'FOUND' }],
    checks.map((check) => [check.name, check.status, check.found]),
  )
  const mend = checks.filter((check) => check.fix !== undefined)
  if (mend.length > 0) {
    out.line()
    out.table(
      [{ title: 'TO GET' }, { title: 'DO' }],
      mend.map((check) => [check.name, check.fix]),
    )
  }
  out.line()
  out.table(
    [{ title: 'SOURCE' }, { title: 'USABLE' }, { title: 'WHY' }],
    sources.map((source) => [`${source.kind}:`, source.usable ? 'yes' : 'no', source.why]),
  )
}
