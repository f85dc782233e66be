import { writeNewFile } from '../../capabilities/files.js'
import { compileFlask } from '../../capabilities/flask/index.js'
import { buildPolicy } from '../../host/policy.js'
import type { Command } from '../command.js'
import { planOptions, sourceOption } from '../flask-options.js'
import { readPlan } from '../flask-plan.js'

export const command: Command = {
  summary: 'Turn delegations into a policy of Xen, for a look or for the boot',
  help: [
    'PLAN names domains and the tokens that are to be direct (docs/flask.md). Prints the policy module, in the macros of',
    "Xen's own policy: nothing of the host is changed, and no Xen is needed. --out also compiles it with Xen's own policy to",
    'the binary that Xen boots with.',
    '',
    'A token that Xen can not enforce (limited in ranges, processes, rates, uses, …) is refused, by the name of its limit.',
  ].join('\n'),
  options: {
    ...planOptions,
    ...sourceOption,
    out: { type: 'string', value: 'FILE', help: 'compile, and write the binary policy to a new file' },
  },
  json: true,
  async run({ args, out }) {
    const { domains, delegations } = await readPlan(args.need('plan'))
    const policy = compileFlask({
      domains,
      delegations: delegations.map(({ service, grant }) => ({ service, grant })),
      private: args.flag('private'),
      locked: args.flag('locked'),
    })
    const file = args.text('out')
    if (file !== undefined) {
      const source = args.text('xen-source')
      const binary = await buildPolicy({ ...policy, ...(source === undefined ? {} : { xenSource: source }) })
      await writeNewFile(file, binary, 0o644, 'the policy')
    }
    if (out.isJson) {
      out.json({ ...policy, ...(file === undefined ? {} : { file }) })
      return 0
    }
    for (const { name, seclabel, initSeclabel } of policy.labels) {
      out.note(
        `${name}: seclabel = "${seclabel}"${initSeclabel === undefined ? '' : `, init_seclabel = "${initSeclabel}"`}`,
      )
    }
    out.line(policy.module.trimEnd())
    return 0
  },
}
