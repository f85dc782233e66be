import { existsSync, readFileSync } from 'node:fs'
import { type FlaskMode, XlFlask } from '../../host/flask.js'
import { loadShim } from '../../native/shim.js'
import { listDomains, readStore } from '../../vmi/sources/xen-domains.js'
import { bad, type Check, missing, ok } from './check.js'

/** A domain that the toolstack made the device model of another: xc_domain_set_target, `target` in xenstore. */
export interface Target {
  readonly domid: number
  readonly target: string
}

const FIX = "boot a Xen with XSM (CONFIG_XSM_FLASK) and flask=enforcing; Debian's has none: docs/flask.md"

/** Whether Xen itself can hold service domains to their rights. Nothing to say where this is no control domain of Xen. */
export async function checkXsm(): Promise<Check[]> {
  const role = '/proc/xen/capabilities'
  if (!existsSync(role) || !readFileSync(role, 'utf8').includes('control_d')) return []
  try {
    return [xsmCheck(await new XlFlask().mode(), targets())]
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    return [missing('xsm', `Xen does not tell whether it enforces a policy: ${why}`, 'run as root in dom0')]
  }
}

function targets(): Target[] {
  const shim = loadShim()
  return listDomains(shim).flatMap(({ domid }) => {
    const target = readStore(shim, `/local/domain/${domid}/target`)
    return target === undefined ? [] : [{ domid, target }]
  })
}

export function xsmCheck(mode: FlaskMode, found: readonly Target[]): Check {
  if (mode === 'enforcing')
    return ok('xsm', 'FLASK enforces a policy: `cloudapp flask status` says what of a delegation')
  if (mode === 'permissive') {
    return bad('xsm', 'FLASK is there and refuses nothing (permissive)', 'xl setenforce 1; boot with flask=enforcing')
  }
  const coarse =
    'xc_domain_set_target gives a domain all memory of its target, to read and write, and can not be undone'
  if (found.length === 0) {
    return missing('xsm', `a Xen without XSM: the broker alone enforces what is delegated; ${coarse}`, FIX)
  }
  const pairs = found.slice(0, 8).map(({ domid, target }) => `${domid} has ${target.slice(0, 16)}`)
  return bad('xsm', `a Xen without XSM, and domains with targets (${pairs.join(', ')}): ${coarse}`, FIX)
}
