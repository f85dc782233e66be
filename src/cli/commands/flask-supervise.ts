import { superviseDirect } from '../../broker/direct/index.js'
import type { Command } from '../command.js'
import { explain } from '../explain.js'
import { DEFAULT_SUPERVISOR, supervisorOption } from '../flask-options.js'

export const command: Command = {
  summary: 'Run the supervisor of direct access, which ends it at its time',
  help: [
    'A process of its own, as root in the control domain: it alone turns the switches of the policy on and off, and goes on when',
    'the broker is dead. Started anew it ends what is over, and turns nothing on.',
    '',
    'Who may connect to the socket can end leases; only the same user can start them. With --json one document is printed when',
    'it is ready.',
  ].join('\n'),
  options: {
    state: { type: 'string', value: 'DIR', required: true, help: 'folder of what must survive' },
    ...supervisorOption,
    mode: { type: 'string', value: 'OCTAL', help: 'permissions of the socket, "0660"; "0600" by default' },
  },
  json: true,
  async run({ args, out, signal }) {
    const mode = args.text('mode')
    const supervisor = await superviseDirect({
      state: args.need('state'),
      socket: args.text('supervisor') ?? DEFAULT_SUPERVISOR,
      ...(mode === undefined ? {} : { mode: Number.parseInt(mode, 8) }),
      onTrouble: (lease, error) =>
        out.note(
          `the lease of ${lease.service.name} over ${lease.client.name} could not be ended yet: ${explain(error)}`,
        ),
    })
    try {
      const leases = supervisor.list().length
      if (out.isJson) out.json({ socket: supervisor.socket, leases })
      else out.line(`listening on ${supervisor.socket}; ${leases} leases`)
      await new Promise<void>((resolve) => {
        if (signal.aborted) resolve()
        else signal.addEventListener('abort', () => resolve(), { once: true })
      })
    } finally {
      await supervisor.close()
    }
    return 0
  },
}
