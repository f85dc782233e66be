import { CloudAppError } from '../../errors.js'
import type { SnapshotBytes } from './snapshot.js'

const MAKEDUMPFILE = 'makedumpfile -d 0 --elf-format'

/** Snapshot formats that are known and not read, by their first bytes. */
const OTHERS: readonly { readonly magic: Buffer; readonly name: string; readonly instead: string }[] = [
  {
    magic: Buffer.from('KDUMP   '),
    name: 'a compressed kdump (makedumpfile, QEMU kdump-zlib, -lzo and -snappy)',
    instead: `write it as ELF: QEMU's dump-guest-memory without a format, or ${MAKEDUMPFILE}`,
  },
  {
    magic: Buffer.from('makedumpfile\0\0\0\0'),
    name: 'a flattened kdump (makedumpfile -F, QEMU kdump-*)',
    instead: `write it as ELF: QEMU's dump-guest-memory without a format, or ${MAKEDUMPFILE}`,
  },
  { magic: Buffer.from('DISKDUMP'), name: 'a diskdump', instead: `write it as ELF: ${MAKEDUMPFILE}` },
  { magic: Buffer.from('AVML'), name: 'a compressed AVML image', instead: 'convert it by avml-convert' },
  {
    magic: Buffer.from('PAGEDU64'),
    name: 'a Windows crash dump',
    instead: "write it as ELF: QEMU's dump-guest-memory without a format",
  },
  {
    magic: Buffer.from('QEVM'),
    name: "QEMU's migration stream (migrate, savevm, virsh save)",
    instead: "write a snapshot by QEMU's dump-guest-memory",
  },
  {
    magic: Buffer.from('LibvirtQemudSave'),
    name: 'a libvirt save image',
    instead: 'write a snapshot by virsh dump --memory-only',
  },
  {
    magic: Buffer.from('\xff\xff\xff\xff\xff\xff\xff\xffXENF', 'latin1'),
    name: "Xen's migration stream (xl save)",
    instead: 'write a snapshot by xl dump-core',
  },
  { magic: Buffer.from([0x1f, 0x8b]), name: 'compressed by gzip', instead: 'unpack it first' },
  { magic: Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a]), name: 'compressed by xz', instead: 'unpack it first' },
  { magic: Buffer.from([0x28, 0xb5, 0x2f, 0xfd]), name: 'compressed by zstd', instead: 'unpack it first' },
]

/** @throws CloudAppError `ERR_CLOUDAPP_UNSUPPORTED` naming the format, if it is a known one no source reads. */
export async function refuseOtherFormat(file: SnapshotBytes): Promise<void> {
  const head = await file.read(0n, Number(file.size < 16n ? file.size : 16n), 'the beginning of the file')
  for (const { magic, name, instead } of OTHERS) {
    if (!head.subarray(0, magic.length).equals(magic)) continue
    throw new CloudAppError('ERR_CLOUDAPP_UNSUPPORTED', `the snapshot is ${name}, which is not read: ${instead}`, {
      details: { format: name },
    })
  }
}
