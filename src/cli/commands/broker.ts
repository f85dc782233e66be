import { openBroker } from '../../broker/broker.js'
import { keepFreedMemory } from '../../native/libc.js'
import { readBrokerConfig } from '../broker-config.js'
import type { Command } from '../command.js'
import { explain } from '../explain.js'

/** Some large results of a few sessions, that each come and go within a millisecond. */
const KEPT = 128 * 1024 * 1024

export const command: Command = {
  summary: 'Run the broker: the one process that opens VMs, for those who hold rights on them',
  help: [
    'FILE is JSON: {"key", "register", "state", "socket"} are paths (relative ones start at FILE\'s folder); "socket" may also',
    'be tls:HOST:PORT, or a list; optional are "mode" (of a unix socket, "0660"), "maxPauseMs", and',
    '"audit": {"path", "fsync": "always"|"interval", …}.',
    '',
    'SIGHUP reads the register of owners again. SIGTERM and SIGINT end it: paused VMs run on, the log is closed.',
    'With --json one document is printed when it is ready.',
  ].join('\n'),
  options: { config: { type: 'string', value: 'FILE', required: true, help: 'the configuration' } },
  json: true,
  async run({ args, out, signal }) {
    const { options, listen } = await readBrokerConfig(args.need('config'))
    keepFreedMemory(KEPT)
    const broker = await openBroker(options)
    const reload = () => {
      broker.reload().then(
        () => out.note('the register was read again'),
        // A bad register leaves the old one in force: say so and go on.
        (error: unknown) => out.note(explain(error)),
      )
    }
    try {
      const sockets: string[] = []
      for (const one of listen) sockets.push((await broker.listen(one)).address)
      process.on('SIGHUP', reload)
      if (out.isJson) out.json({ socket: sockets[0], sockets, broker: broker.publicKey, pid: process.pid })
      else out.line(`broker ${broker.publicKey} listens on ${sockets.join(', ')}`)
      await ended(signal)
    } finally {
      process.off('SIGHUP', reload)
      await broker.close()
    }
    return 0
  },
}

function ended(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve()
  return new Promise((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
}
