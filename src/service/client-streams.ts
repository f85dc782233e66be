import { CloudAppError, type CloudAppErrorCode } from '../errors.js'
import { checkOptions } from '../options.js'
import type { ClientRun, FindingFilter, WatchOptions } from './client.js'
import { ask, type ClientLink, type Open } from './client-link.js'
import { ANSWERS, answer, type RunEvent, type WireFinding, type WireRun, type WireWatch } from './interface/protocol.js'
import type { DetectionFinding } from './ocsf/types.js'
import { assertOcsf } from './ocsf/validate.js'
import type { ChangeKind } from './vocabulary.js'

/** A finding, or one change of it, as a client gets it. */
export interface ClientFinding {
  /** Resumes a list or a watch after this one. */
  readonly cursor: string
  readonly change: ChangeKind
  /** The OCSF 1.8 Detection Finding. Its texts may come from a hostile VM: escape them before you show them. */
  readonly finding: DetectionFinding
}

/** Records that a list or a watch does not give. */
export interface FindingGap {
  readonly count: number
  /** False: at least so many. */
  readonly exact: boolean
  /** `slow`: this client fell behind. `retention`: they were removed for their age or number. */
  readonly reason: 'slow' | 'retention'
}

const RECORDS = 64

/** Sessions in a row that break without a record, before a watch gives up. One cut off inside a frame is nothing odd. */
const BROKEN = 3

/** As it goes over the wire. */
export function filterOf(filter: FindingFilter): Record<string, unknown> {
  const { minSeverity, status, vm } = filter
  return {
    ...(minSeverity !== undefined && { minSeverity }),
    ...(status !== undefined && { status: [status].flat() }),
    ...(vm !== undefined && { vm }),
  }
}

/** Checked: a service domain that sends what is no OCSF finding gets ERR_CLOUDAPP_PROTOCOL. */
export function clientFinding(wire: WireFinding): ClientFinding {
  try {
    const finding = JSON.parse(wire.json) as DetectionFinding
    assertOcsf('detection_finding', finding)
    return { cursor: wire.cursor, change: wire.change, finding }
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause)
    throw new CloudAppError('ERR_CLOUDAPP_PROTOCOL', `The service domain sent no valid finding: ${why}`, { cause })
  }
}

/** List-then-watch over however many sessions it takes. */
export async function* watchFindings(
  link: ClientLink,
  options: WatchOptions,
): AsyncGenerator<ClientFinding, undefined> {
  checkOptions('findings.watch', options, ['minSeverity', 'status', 'vm', 'since', 'signal', 'onGap', 'onLive'])
  const { signal, onGap, onLive, ...filter } = options
  let since = filter.since
  let live = false
  let broken = 0
  while (!signal?.aborted) {
    let watch: (WireWatch & Disposable) | undefined
    try {
      const { session, service } = await link.open(signal)
      const query = { ...filterOf(filter), ...(since !== undefined && { since }) }
      watch = (await ask(session, () => service.findings.watch(query), signal)) as WireWatch & Disposable
      const taken = watch
      while (!signal?.aborted) {
        const answered = await ask(session, () => taken.next({ max: RECORDS }), signal)
        const { records } = answer('watch.next', ANSWERS.records, answered)
        if (records.length > 0) broken = 0
        for (const record of records) {
          if (record.type === 'live') {
            // After a reconnect it is no news.
            if (!live) onLive?.()
            live = true
            continue
          }
          if (record.type === 'gap') onGap?.({ count: record.count, exact: record.exact, reason: record.reason })
          else yield clientFinding(record)
          since = record.cursor
        }
      }
    } catch (error) {
      if (signal?.aborted) return
      await link.again(error, signal, ++broken <= BROKEN)
    } finally {
      watch?.[Symbol.dispose]?.()
    }
  }
}

/** The events of a run. It lives as long as its session: when the service domain goes, it fails. */
export function runEvents(session: Open['session'], wire: WireRun, signal: AbortSignal | undefined): ClientRun {
  const run = wire as WireRun & Disposable
  let taken = false
  const cancel = () => {
    // Nothing to tell a service domain that is gone.
    ask(session, async () => run.cancel()).catch(() => undefined)
  }
  async function* events(): AsyncGenerator<RunEvent, undefined> {
    if (taken) throw new CloudAppError('ERR_CLOUDAPP_INVALID_ARGUMENT', 'The events of a run are iterated once')
    taken = true
    let ended = false
    try {
      while (!ended) {
        const answered = await ask(session, () => run.next({}), signal)
        for (const event of answer('run.next', ANSWERS.runEvents, answered).events) {
          ended ||= event.type === 'done'
          yield event
        }
      }
    } finally {
      if (!ended) cancel()
      run[Symbol.dispose]?.()
    }
  }
  return {
    [Symbol.asyncIterator]: events,
    cancel,
    done: async () => {
      let failure: CloudAppError | undefined
      for await (const event of events()) {
        if (event.type === 'failed') failure = failed(event)
        if (event.type === 'done' && event.outcome === 'cancelled') return 'cancelled'
      }
      if (failure) throw failure
      return 'finished'
    },
  }
}

function failed(event: { readonly code: string; readonly message: string; readonly vm: string }): CloudAppError {
  const ours = /^ERR_CLOUDAPP_[A-Z_]{1,40}$/.test(event.code)
  const code = (ours ? event.code : 'ERR_CLOUDAPP_PROTOCOL') as CloudAppErrorCode
  return new CloudAppError(code, `The scan of ${event.vm} failed: ${event.message}`, { vm: event.vm })
}
