import type { QmpClient } from './qmp.js'

/** QEMU's `query-status`: whether the VM runs, and in a word why not (`paused`: somebody stopped it). */
export async function vmStatus(qmp: QmpClient): Promise<{ readonly running: boolean; readonly status: unknown }> {
  const answer = await qmp.execute('query-status')
  if (typeof answer !== 'object' || answer === null || !('running' in answer) || typeof answer.running !== 'boolean') {
    throw qmp.protocol("'query-status' does not say whether the VM runs")
  }
  return { running: answer.running, status: 'status' in answer ? answer.status : undefined }
}
