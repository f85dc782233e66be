import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CloudAppError } from '../../errors.js'
import type { VcpuReader, VcpuRegisters } from '../guest.js'
import type { QemuPause } from './qemu-pause.js'
import { findSyscallMsrs, parseRegisters, type SyscallMsrs } from './qemu-registers.js'
import type { QmpClient } from './qmp.js'

/** The state of a PC with a disk is about 100 KiB; a large display adapter's memory is RAM and not in it. */
const STATE_LIMIT = 64 * 1024 * 1024

/** Reads vCPU registers through QEMU's monitor. */
export class QemuVcpus implements VcpuReader {
  readonly #qmp: QmpClient
  readonly #pause: QemuPause
  readonly #deviceState: boolean

  constructor(qmp: QmpClient, pause: QemuPause, deviceState: boolean) {
    this.#qmp = qmp
    this.#pause = pause
    this.#deviceState = deviceState
  }

  /**
   * What QEMU can not give, and why, is in `missing` of each vCPU. Unless the VM stands still, LSTAR is read a moment after
   * the others.
   *
   * @throws CloudAppError ERR_CLOUDAPP_SOURCE, ERR_CLOUDAPP_PROTOCOL, ERR_CLOUDAPP_TIMEOUT, ERR_CLOUDAPP_ABORTED.
   */
  async registers(options: { readonly signal?: AbortSignal } = {}): Promise<VcpuRegisters[]> {
    const vcpus = parseRegisters(await this.#qmp.human('info registers -a', options))
    const msrs = this.#deviceState ? await this.#syscallMsrs(vcpus) : 'the source was opened with deviceState: false'
    if (options.signal?.aborted) {
      throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'reading the registers was aborted', {
        cause: options.signal.reason,
      })
    }
    return vcpus.map((vcpu) => {
      const found = typeof msrs === 'string' ? undefined : msrs.get(vcpu.index)
      if (found) return { ...vcpu, ...found }
      const why = typeof msrs === 'string' ? msrs : 'SYSCALL is not turned on (EFER.SCE)'
      return { ...vcpu, missing: { ...vcpu.missing, lstar: why, kernelGsBase: why } }
    })
  }

  async #syscallMsrs(vcpus: readonly VcpuRegisters[]): Promise<Map<number, SyscallMsrs> | string> {
    // QEMU writes the file itself: mode 0700 keeps everybody else's uid out of it.
    const folder = await mkdtemp(join(tmpdir(), 'cloudapp-state-'))
    try {
      const file = join(folder, 'state')
      await this.#pause.whileNobodyStops(() =>
        // live: false, or QEMU would also give up the disks of a VM that stands still.
        this.#qmp.execute('xen-save-devices-state', { filename: file, live: false }),
      )
      const { size } = await stat(file)
      if (size > STATE_LIMIT) return `QEMU's device state is ${size} bytes long`
      return findSyscallMsrs(await readFile(file), vcpus)
    } catch (error) {
      // The connection's end is the caller's business; anything else only means that these two can not be had.
      if (this.#qmp.closed.aborted) throw this.#qmp.closed.reason
      return `QEMU can not save its device state where it can be read: ${(error as Error).message}`
    } finally {
      await rm(folder, { recursive: true, force: true })
    }
  }
}
