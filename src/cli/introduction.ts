import { findDomain, type Introduction } from '../transport/xen/introductions.js'
import { XenStore } from '../transport/xen/xenstore.js'
import type { Arguments, OptionSpec, PositionalSpec } from './command.js'

/** What `vchan introduce` and `vchan withdraw` are asked. */
export const INTRODUCTION: {
  readonly options: Readonly<Record<string, OptionSpec>>
  readonly positionals: readonly PositionalSpec[]
} = {
  options: {
    server: {
      type: 'string',
      value: 'DOMAIN',
      required: true,
      help: 'who serves it: a name, number or uuid; 0 is dom0',
    },
    client: { type: 'string', value: 'DOMAIN', required: true, help: 'who may use it' },
  },
  positionals: [{ name: 'SERVICE', help: "the service's name, as in vchan:NAME", required: true }],
}

/** Does one thing with the introduction the arguments name, in this host's xenstore. */
export async function withIntroduction(
  args: Arguments,
  work: (store: XenStore, introduction: Introduction) => Promise<void>,
): Promise<Introduction> {
  await using store = await XenStore.open()
  const server = await findDomain(store, args.need('server'))
  const client = await findDomain(store, args.need('client'))
  const introduction = { service: args.positionals[0] ?? '', server, client }
  await work(store, introduction)
  return introduction
}
