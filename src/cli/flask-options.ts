import { DEFAULT_XEN_SOURCE } from '../host/policy.js'
import type { OptionSpec } from './command.js'

export const planOptions: Readonly<Record<string, OptionSpec>> = {
  plan: { type: 'string', value: 'PLAN', required: true, help: 'which domains and which tokens: a JSON file' },
  private: { type: 'boolean', help: 'close these domains to the control domain itself, once they are built' },
  locked: {
    type: 'boolean',
    help: 'with --private: take from the control domain the right to change the policy, but for revoking all',
  },
}

export const sourceOption: Readonly<Record<string, OptionSpec>> = {
  'xen-source': {
    type: 'string',
    value: 'DIR',
    help: `the source of the Xen that runs, whose policy is compiled in; ${DEFAULT_XEN_SOURCE} by default`,
  },
}

export const supervisorOption: Readonly<Record<string, OptionSpec>> = {
  supervisor: {
    type: 'string',
    value: 'SOCKET',
    help: "the supervisor's socket; /run/cloudapp-direct/direct.sock by default",
  },
}

export const DEFAULT_SUPERVISOR = '/run/cloudapp-direct/direct.sock'
