import { CloudAppError } from '../../errors.js'
import type { Shim } from '../../native/abi.js'
import { checked } from '../../native/shim.js'
import type { VcpuReader, VcpuRegisters } from '../guest.js'
import { domainOf } from './xen-domains.js'

/** CA_XEN_VCPU_WORDS. */
const WORDS = 14
/** HVM_MAX_VCPUS (xen/hvm/hvm_info_table.h): what a domain can have. */
const MAX_VCPUS = 128
/** CA_E_OPEN: the vCPU is not up. */
const NOT_UP = -3

/** Reads vCPU registers out of Xen's saved context of an HVM or PVH domain, each vCPU at one moment. */
export class XenVcpus implements VcpuReader {
  readonly #shim: Shim
  readonly #domid: number

  readonly #blind: boolean

  /** @param options.blind Xen does not tell this domain how many vCPUs there are: each possible one is asked for. */
  constructor(shim: Shim, domid: number, options: { readonly blind?: boolean } = {}) {
    this.#shim = shim
    this.#domid = domid
    this.#blind = options.blind ?? false
  }

  /** vCPUs that are not up are left out. @throws CloudAppError ERR_CLOUDAPP_SOURCE, ERR_CLOUDAPP_ABORTED. */
  async registers(options: { readonly signal?: AbortSignal } = {}): Promise<VcpuRegisters[]> {
    const vcpus: VcpuRegisters[] = []
    const words = new BigUint64Array(WORDS)
    const last = this.#blind ? MAX_VCPUS - 1 : this.#lastVcpu()
    for (let index = 0; index <= last; index++) {
      if (options.signal?.aborted === true) {
        throw new CloudAppError('ERR_CLOUDAPP_ABORTED', 'reading the registers was aborted', {
          cause: options.signal.reason,
        })
      }
      const result = this.#shim.ca_xen_vcpu(this.#domid, index, words)
      if (result === NOT_UP) continue
      checked(this.#shim, result)
      vcpus.push(registersOf(index, words))
    }
    return vcpus
  }

  #lastVcpu(): number {
    const domain = domainOf(this.#shim, this.#domid)
    if (domain === undefined) throw new CloudAppError('ERR_CLOUDAPP_SOURCE', `domain ${this.#domid} has gone`)
    return domain.lastVcpu
  }
}

/** The order is that of ca_xen_vcpu (cloudapp_xen.h). */
function registersOf(index: number, words: BigUint64Array): VcpuRegisters {
  const at = (i: number): bigint => words[i] ?? 0n
  return {
    index,
    rip: at(0),
    rsp: at(1),
    rflags: at(2),
    cr0: at(3),
    cr3: at(4),
    cr4: at(5),
    efer: at(6),
    gsBase: at(7),
    kernelGsBase: at(8),
    idtBase: at(9),
    idtLimit: Number(at(10)),
    gdtBase: at(11),
    lstar: at(12),
  }
}
