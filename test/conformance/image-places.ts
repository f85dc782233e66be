import { Bits } from './image-builder.js'

const { Write, User, NoExecute } = Bits
const MiB = 1024n * 1024n

/** Virtual addresses the suite uses. */
export const VA = {
  /** 4 KiB pages: the first 2 MiB of RAM, but for the holes below. */
  direct: 0xffff_8880_0000_0000n,
  /** A 2 MiB page: RAM from 2 MiB on. */
  large: 0xffff_8880_0020_0000n,
  /** A 1 GiB page on physical 0; most of it is past the end of RAM. */
  huge: 0xffff_8880_4000_0000n,
  /** Pages that are together here and apart in RAM: 3, 1, 2 of the scattered ones, a hole, and 3 again. */
  scattered: 0xffff_9000_0000_0000n,
  /** One page for each way of permissions: see {@link PERMISSIONS}. */
  permissions: 0x0000_1000_0000_0000n,
  /** A page whose levels above take rights away. */
  narrowed: 0x0000_2000_0000_0000n,
  /** One fault each. */
  noRoot: 0xffff_a000_0000_0000n,
  noLevel3: 0xffff_a080_0000_0000n,
  noLevel2: 0xffff_a100_0000_0000n,
  noLevel1: 0xffff_a180_0000_0000n,
  reservedRoot: 0xffff_a200_0000_0000n,
  reservedLevel3: 0xffff_a280_0000_0000n,
  reservedLevel2: 0xffff_a300_0000_0000n,
  tableOutside: 0xffff_a380_0000_0000n,
  pageOutside: 0xffff_a400_0000_0000n,
  /** All indexes lead to the root slot that points back at the root: the page here is the root table. */
  self4: 0xffff_a4d2_6934_9000n,
  self5: 0xff2c_964b_2592_c000n,
  /** Only in the 5-level space: not canonical with 4. */
  wide: 0xff11_0000_0000_0000n,
} as const

/** Entry bits and the flags they come to, page by page from {@link VA.permissions}. */
export const PERMISSIONS: readonly (readonly [bits: bigint, flags: number])[] = [
  [0n, 4],
  [Write, 5],
  [User, 6],
  [Write | User, 7],
  [NoExecute, 0],
  [Write | User | NoExecute, 3],
]

/** Physical places. */
export const PA = {
  structures: 0x1000n,
  scattered: 0x10_0000n,
  permissions: 0x11_0000n,
  /** Not mapped in {@link VA.direct}. */
  hole: 0x12_0000n,
  patterns: 0x13_0000n,
  long: 0x14_0000n,
  tables: 0x18_0000n,
  large: 2n * MiB,
} as const
