import { loadKey, openSecret } from '../../capabilities/key-files.js'
import { openGateway } from '../../service/gateway/gateway.js'
import { integerOf } from '../arguments.js'
import { type Command, UsageError } from '../command.js'
import { readTextFile } from '../files.js'

const MAX_PEM = 256 * 1024

export const command: Command = {
  summary: "Serve a service domain's findings as HTTP and JSON, for curl and for a SIEM",
  help: [
    'Each request says who asks: Authorization: Bearer …, with a pass that a customer signed (cloudapp pass), which shows what',
    "is theirs; or with the content of --secret-file, which shows what the gateway's own user sees at the service domain.",
    'GET /openapi.json describes every address; /v1/findings/export and /v1/findings/watch give lines of JSON.',
    'With --json one document is printed when it is ready. SIGTERM and SIGINT end it.',
  ].join('\n'),
  options: {
    endpoint: {
      type: 'string',
      value: 'SOCKET',
      required: true,
      help: 'the service domain: a unix socket, vchan:NAME or tls:…',
    },
    key: { type: 'string', value: 'FILE', help: 'the private key to ask with: tls:… needs one' },
    host: { type: 'string', value: 'ADDRESS', help: 'IP address to listen on (127.0.0.1); others need --tls-cert' },
    port: { type: 'string', value: 'N', help: 'port to listen on (8460); 0 takes any' },
    'secret-file': {
      type: 'string',
      value: 'FILE',
      help: 'the local secret; made, with mode 0600, if it is not there',
    },
    'tls-cert': { type: 'string', value: 'FILE', help: 'certificate chain, PEM' },
    'tls-key': { type: 'string', value: 'FILE', help: 'its private key, PEM' },
  },
  json: true,
  async run({ args, out, signal }) {
    const [host, file, own] = ['host', 'secret-file', 'key'].map((name) => args.text(name))
    const [cert, key] = ['tls-cert', 'tls-key'].map((name) => args.text(name))
    if ((cert === undefined) !== (key === undefined)) throw new UsageError('--tls-cert and --tls-key go together')
    const pem = (path: string) => readTextFile(path, MAX_PEM, 'the PEM file')
    await using gateway = await openGateway({
      endpoint: args.need('endpoint'),
      port: integerOf('port', args.text('port') ?? '8460', 65_535),
      ...(own !== undefined && { key: await loadKey(own) }),
      ...(host !== undefined && { host }),
      ...(file !== undefined && { secret: await openSecret(file) }),
      ...(cert !== undefined && key !== undefined && { tls: { cert: await pem(cert), key: await pem(key) } }),
    })
    if (out.isJson) out.json({ url: gateway.url, pid: process.pid })
    else out.line(`gateway listens on ${gateway.url}; ${gateway.url}/openapi.json describes it`)
    if (!signal.aborted) await new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true }))
    return 0
  },
}
