import type { AuditRecord } from '../broker/audit/types.js'
import type { Arguments, OptionSpec } from './command.js'

/** The options that choose records of an audit log. */
export const filterOptions: Readonly<Record<string, OptionSpec>> = {
  vm: { type: 'string', value: 'NAME', help: 'only records about this VM' },
  action: {
    type: 'string',
    value: 'WORD',
    help: 'only this action, such as memory.read, or with all below it, such as memory',
  },
  refused: { type: 'boolean', help: 'only what was refused or failed' },
}

/** Whether a record is one of those that were asked for. */
export function filterFrom(args: Arguments): (record: AuditRecord) => boolean {
  const [vm, action, refused] = [args.text('vm'), args.text('action'), args.flag('refused')]
  return ({ entry }) =>
    (vm === undefined || entry.vm === vm) &&
    (action === undefined || entry.action === action || entry.action.startsWith(`${action}.`)) &&
    (!refused || entry.outcome !== 'allowed')
}
