import { CloudAppError } from '../../errors.js'
import { checkOptions } from '../../options.js'
import { DOM0_UUID } from './neighbours.js'
import { checkName } from './service.js'
import type { StoreKeys, XenStore } from './xenstore.js'

/** A service of one domain that another is to find. */
export interface Introduction {
  /** The service's name, in lower case. */
  readonly service: string
  /** The domain that serves it, by number. */
  readonly server: number
  /** The domain that may use it, by number. */
  readonly client: number
}

/**
 * Announces a service of one domain to another, and tells each who the other is (the keys are in service.ts). For dom0, which
 * alone can write there. A service of this name that was announced to the client before is replaced: after a restart the
 * server is another domain. What is still said of domains that have ended is taken away, as Xen gives their numbers out again.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND` if there is no such domain; `ERR_CLOUDAPP_INVALID_ARGUMENT`;
 *   `ERR_CLOUDAPP_DENIED` outside dom0.
 */
export async function introduce(store: XenStore, introduction: Introduction): Promise<void> {
  const { service, server, client } = checkIntroduction('introduce', introduction)
  const uuids = new Map<number, string>()
  for (const domid of [server, client]) {
    if (!(await store.isDomainIntroduced(domid))) {
      throw new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `There is no domain ${domid}`)
    }
    const vm = domid === 0 ? DOM0_UUID : await store.read(`/local/domain/${domid}/vm`)
    uuids.set(domid, (vm ?? '').replace('/vm/', ''))
  }
  await store.transaction(async (keys) => {
    const put = async (domid: number, key: string, value: string) => {
      const path = folder(domid)
      await keys.mkdir(path)
      // Before anything is below it: what is made there has the same owner and readers.
      await keys.setPermissions(path, [
        { domid: 0, access: 'none' },
        { domid, access: 'read' },
      ])
      await keys.write(`${path}/${key}`, value)
    }
    const before = await serverOf(keys, client, service)
    await put(client, `services/${service}`, `${server}/${service}`)
    await put(client, `peers/${server}`, uuids.get(server) as string)
    await put(server, `peers/${client}`, uuids.get(client) as string)
    if (before !== undefined && before !== server) await part(keys, before, client)
  })
  await forgetTheDead(store)
}

/**
 * Takes an introduction back: the service is found no more; who is connected stays so until one of the two ends it. For dom0.
 *
 * @throws CloudAppError as {@link introduce}, but for domains that have ended.
 */
export async function withdraw(store: XenStore, introduction: Introduction): Promise<void> {
  const { service, server, client } = checkIntroduction('withdraw', introduction)
  await store.transaction(async (keys) => {
    if ((await serverOf(keys, client, service)) !== server) return
    await keys.remove(`${folder(client)}/services/${service}`)
    await part(keys, server, client)
  })
  await forgetTheDead(store)
}

/**
 * The number of a domain that lives, by number, name or uuid. For dom0.
 *
 * @throws CloudAppError `ERR_CLOUDAPP_NOT_FOUND`; `ERR_CLOUDAPP_INVALID_ARGUMENT` if two domains are called so (one is being
 *   migrated or restored); `ERR_CLOUDAPP_DENIED` outside dom0.
 */
export async function findDomain(store: XenStore, text: string): Promise<number> {
  const wanted = text.toLowerCase()
  const found: number[] = []
  for (const domid of await domains(store)) {
    const known = [
      `${domid}`,
      await store.read(`/local/domain/${domid}/name`),
      (await store.read(`/local/domain/${domid}/vm`))?.replace('/vm/', ''),
    ]
    if (known[0] === text) return domid
    if (known[1] === text || known[2] === wanted) found.push(domid)
  }
  const [domid, ...others] = found
  if (domid !== undefined && others.length === 0) return domid
  throw domid === undefined
    ? new CloudAppError('ERR_CLOUDAPP_NOT_FOUND', `There is no domain '${text}' (see xl list)`)
    : new CloudAppError(
        'ERR_CLOUDAPP_INVALID_ARGUMENT',
        `${found.length} domains are called '${text}': name it by number`,
      )
}

const folder = (domid: number): string => `/local/domain/${domid}/cloudapp`

function checkIntroduction(what: string, introduction: Introduction): Introduction {
  checkOptions(what, introduction, ['service', 'server', 'client'])
  const { service, server, client } = introduction
  checkName(service)
  if (server === client) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', `${what}: both are domain ${server}`)
  return introduction
}

/** Which domain serves the client under a name, as it was announced. */
async function serverOf(keys: StoreKeys, client: number, service: string): Promise<number | undefined> {
  const digits = /^(\d{1,5})\//.exec((await keys.read(`${folder(client)}/services/${service}`)) ?? '')?.[1]
  return digits === undefined ? undefined : Number(digits)
}

/** Lets two domains forget who the other is, unless another service of the one is announced to the other. */
async function part(keys: StoreKeys, server: number, client: number): Promise<void> {
  for (const [from, to] of [
    [server, client],
    [client, server],
  ] as const) {
    for (const name of (await keys.list(`${folder(to)}/services`)) ?? []) {
      if ((await serverOf(keys, to, name)) === from) return
    }
  }
  await keys.remove(`${folder(client)}/peers/${server}`)
  await keys.remove(`${folder(server)}/peers/${client}`)
}

async function forgetTheDead(store: XenStore): Promise<void> {
  const alive = new Set(await domains(store))
  for (const domid of alive) {
    for (const peer of (await store.list(`${folder(domid)}/peers`)) ?? []) {
      if (!alive.has(Number(peer))) await store.remove(`${folder(domid)}/peers/${peer}`)
    }
    for (const name of (await store.list(`${folder(domid)}/services`)) ?? []) {
      const server = await serverOf(store, domid, name)
      if (server === undefined || !alive.has(server)) await store.remove(`${folder(domid)}/services/${name}`)
    }
  }
}

async function domains(store: XenStore): Promise<number[]> {
  const alive: number[] = []
  for (const word of (await store.list('/local/domain')) ?? []) {
    if (/^\d{1,5}$/.test(word) && (await store.isDomainIntroduced(Number(word)))) alive.push(Number(word))
  }
  return alive
}
