import type { Command } from './command.js'

export interface CommandEntry {
  readonly name: string
  readonly summary: string
  load(): Promise<{ readonly command: Command }>
}

const entry = (name: string, summary: string, load: CommandEntry['load']): CommandEntry => ({ name, summary, load })

/** Every command. Each is its own module, loaded only when called: `--help` starts no native code. */
export const COMMANDS: readonly CommandEntry[] = [
  entry('doctor', 'check what this host can do, and how to get what it lacks', () => import('./commands/doctor.js')),
  entry('vmi info', 'tell what runs in a VM', () => import('./commands/vmi-info.js')),
  entry('vmi tasks', "list a VM's processes", () => import('./commands/vmi-tasks.js')),
  entry('vmi modules', "list the modules of a VM's kernel", () => import('./commands/vmi-modules.js')),
  entry('vmi symbols', "look up symbols of a VM's kernel", () => import('./commands/vmi-symbols.js')),
  entry('vmi read', "read a VM's memory", () => import('./commands/vmi-read.js')),
  entry('vmi integrity', 'look for what hides in a VM', () => import('./commands/vmi-integrity.js')),
  entry('vmi events', 'watch what happens in a VM', () => import('./commands/vmi-events.js')),
  entry('vmi recover', 'undo in every VM what killed processes left', () => import('./commands/vmi-recover.js')),
  entry('vmi dump', "write a VM's memory to a file", () => import('./commands/vmi-dump.js')),
  entry('vm add', "enter a VM in the host's register", () => import('./commands/vm-add.js')),
  entry('vm list', "list the VMs of the host's register", () => import('./commands/vm-list.js')),
  entry('vm restarted', 'say that a VM was started anew', () => import('./commands/vm-restarted.js')),
  entry('vm remove', "take a VM out of the host's register", () => import('./commands/vm-remove.js')),
  entry('keys generate', 'make a key pair', () => import('./commands/keys-generate.js')),
  entry('keys show', 'show the public key of a key file', () => import('./commands/keys-show.js')),
  entry('broker', 'run the broker', () => import('./commands/broker.js')),
  entry('delegate', 'give a service domain rights over a VM of yours', () => import('./commands/delegate.js')),
  entry('revoke', 'take a delegation back', () => import('./commands/revoke.js')),
  entry('install', 'give a service domain what its manifest asks for', () => import('./commands/install.js')),
  entry('manifest validate', 'check a manifest and its signature', () => import('./commands/manifest-validate.js')),
  entry('manifest sign', 'sign a manifest', () => import('./commands/manifest-sign.js')),
  entry('manifest diff', 'show what an update asks for', () => import('./commands/manifest-diff.js')),
  entry('token inspect', 'show what a token says', () => import('./commands/token-inspect.js')),
  entry('token verify', 'check a token', () => import('./commands/token-verify.js')),
  entry('token attenuate', 'narrow a token', () => import('./commands/token-attenuate.js')),
  entry('token mint', 'sign a token without the broker', () => import('./commands/token-mint.js')),
  entry(
    'findings list',
    "list a service domain's findings about your VMs",
    () => import('./commands/findings-list.js'),
  ),
  entry('findings watch', 'watch findings as they come', () => import('./commands/findings-watch.js')),
  entry('findings show', 'show one finding with its evidence', () => import('./commands/findings-show.js')),
  entry('pass', "sign a pass to a service domain's findings", () => import('./commands/pass.js')),
  entry('gateway', 'serve findings as HTTP and JSON', () => import('./commands/gateway.js')),
  entry('conform', 'check that a service domain speaks the interface', () => import('./commands/conform.js')),
  entry('vchan introduce', 'let one domain find a service of another', () => import('./commands/vchan-introduce.js')),
  entry('vchan withdraw', 'take that back', () => import('./commands/vchan-withdraw.js')),
  entry('flask compile', 'turn delegations into a policy of Xen', () => import('./commands/flask-compile.js')),
  entry('flask apply', 'load that policy, and begin direct access', () => import('./commands/flask-apply.js')),
  entry('flask status', 'show what Xen enforces and what the broker', () => import('./commands/flask-status.js')),
  entry('flask supervise', 'end direct access at its time', () => import('./commands/flask-supervise.js')),
  entry('audit head', "ask for the signed end of a broker's audit log", () => import('./commands/audit-head.js')),
  entry('audit verify', "check a broker's audit log", () => import('./commands/audit-verify.js')),
  entry('audit export', 'write an audit log as OCSF events, for a SIEM', () => import('./commands/audit-export.js')),
  entry('audit show', 'show the records of an audit log', () => import('./commands/audit-show.js')),
]
