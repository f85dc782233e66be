/*
 * Events of a Xen domain: what the event agent, its client and the ring between them agree on.
 *
 * The event agent (build/cloudapp-event-agent, a program of its own) alone owns a domain's monitor ring, the bytes patched
 * into it and the pauses taken for its client. It answers each event at once, by itself: the client is never asked, and a
 * vCPU never waits for it. When the client's end of the control socket closes, the agent restores every byte, answers
 * every waiting vCPU, undoes its pauses, detaches, and exits. One agent serves one client process, which shares it among
 * its subscribers; Xen allows one monitor a domain.
 *
 *   cloudapp-event-agent DOMID            started by the client with
 *     descriptor 3  control: a stream socket, frames both ways (below)
 *     descriptor 4  ring: a memfd made by ca_ring_create()
 *   cloudapp-event-agent DOMID --recover  restores what a killed agent left, then exits 0
 *   cloudapp-event-agent DOMID --synthetic  opens no domain: events come from CA_FRAME_SYNTHETIC
 *
 * The agent's first frame is a CA_FRAME_REPLY of id 0: CA_OK, or why it can not serve this domain, and then it exits. It takes
 * the domain's monitor at the first program and gives it up after the last one; pausing alone does not need it, so any number
 * of agents may pause one domain. When descriptor 3 reads as closed, everything has been undone.
 *
 * Everything is little-endian; every table is of u64 words unless it says otherwise.
 */
#ifndef CLOUDAPP_EVENTS_H
#define CLOUDAPP_EVENTS_H

#include "cloudapp.h"

#define CA_EVENTS_VERSION 1

/* ---- Control: frames { u32 bytes of payload, u32 type, u32 id }, then the payload. ---- */

#define CA_FRAME_HEADER 12
#define CA_FRAME_MAX 8192

enum ca_frame {
    /* Client to agent; each is answered by one CA_FRAME_REPLY with its id. */
    CA_FRAME_SUBSCRIBE = 1,   /* a program (below); reply value: its number, 0 to CA_PROGRAMS_MAX - 1 */
    CA_FRAME_UNSUBSCRIBE = 2, /* u32 number */
    CA_FRAME_PAUSE = 3,       /* counted */
    CA_FRAME_UNPAUSE = 4,
    CA_FRAME_PROBE = 5,       /* reply value: bits of enum ca_trap_support */
    CA_FRAME_SYNTHETIC = 6,   /* u64 { program number, events, events a second (0: as fast as it goes) }: fills the ring
                                 without a guest, for measurements; only in an agent started with --synthetic. Replied to
                                 when it begins. CA_REG_RAX counts the events from 0; memory can not be read */
    /* Agent to client. */
    CA_FRAME_REPLY = 64, /* i64 value (an error of cloudapp.h if negative), then text that explains an error */
    CA_FRAME_WAKE = 65,  /* the ring has records and its consumer had said it sleeps */
    CA_FRAME_GONE = 66   /* text: the domain has ended, or Xen took the monitor away; the agent exits next */
};

/* ---- Programs: what a subscriber wants to be told. ---- */

#define CA_PROGRAMS_MAX 64
#define CA_PREDICATE_MAX 64 /* operations */
#define CA_STACK_MAX 8
#define CA_CAPTURES_MAX 16
#define CA_CAPTURE_BYTES_MAX 256 /* of one capture */
#define CA_HOPS_MAX 3 /* pointers followed by a capture */
#define CA_BREAKPOINTS_MAX 64 /* different addresses in one domain */

enum ca_trap {
    CA_TRAP_REGISTER = 1,      /* argument: 0 CR0, 3 CR3, 4 CR4 (VM_EVENT_X86_* give the same to the hypervisor) */
    CA_TRAP_CPUID = 2,         /* every CPUID; narrow by predicate on CA_FIELD_LEAF */
    CA_TRAP_MSR = 3,           /* argument: the MSR; writes */
    CA_TRAP_DESCRIPTOR = 4,    /* access to IDTR, GDTR, LDTR, TR */
    CA_TRAP_BREAKPOINT = 5,    /* argument: virtual address of the first byte of an instruction; space: where it lies */
    CA_TRAP_GUEST_REQUEST = 6  /* HVMOP_guest_request_vm_event */
};

/* Bits of the answer to CA_FRAME_PROBE: 1 << enum ca_trap for what this host traps, and how breakpoints are made. */
enum ca_trap_support {
    CA_SUPPORT_INT3 = 1 << 16,       /* breakpoints by INT3 */
    CA_SUPPORT_DESCRIPTOR = 1 << 17  /* breakpoints by a descriptor-table instruction, where INT3 does not exit */
};

/* Words of a program's head. */
enum ca_program {
    CA_PROGRAM_VERSION,    /* CA_EVENTS_VERSION */
    CA_PROGRAM_TRAP,       /* enum ca_trap */
    CA_PROGRAM_ARGUMENT,
    CA_PROGRAM_SPACE,      /* of a breakpoint: an address space as in the verbs of cloudapp.h; else 0 */
    CA_PROGRAM_PREDICATE,  /* number of operations; 0: every event */
    CA_PROGRAM_CAPTURES,   /* number of captures */
    CA_PROGRAM_RATE,       /* records a second at most, with a burst of one second; the rest is dropped, counted; 0: no limit */
    CA_PROGRAM_FLAGS,      /* enum ca_program_flags */
    CA_PROGRAM_WORDS
};

enum ca_program_flags {
    CA_PROGRAM_ON_CHANGE = 1 /* CA_TRAP_REGISTER: only writes of another value */
};

/*
 * Behind the head: the predicate, in postfix order over a stack of CA_STACK_MAX words, two words an operation { opcode, operand };
 * true if it leaves one word that is not 0. An address that can not be read makes it false. Then the captures,
 * CA_CAPTURE_WORDS words each.
 */
enum ca_operation {
    CA_OP_CONSTANT = 1, /* push the operand */
    CA_OP_REGISTER,     /* push a register, enum ca_register */
    CA_OP_FIELD,        /* push a field of the event, enum ca_field */
    CA_OP_LOAD,         /* pop an address of the vCPU's present address space, push the operand (1, 2, 4, 8) bytes there */
    CA_OP_ADD, CA_OP_SUBTRACT, CA_OP_AND, CA_OP_OR, CA_OP_XOR, CA_OP_SHIFT_LEFT, CA_OP_SHIFT_RIGHT,
    CA_OP_EQUAL, CA_OP_LESS, /* unsigned */
    CA_OP_NOT,               /* 0 becomes 1, all else 0 */
    CA_OP_LAST = CA_OP_NOT
};

/* struct vm_event_regs_x86 (xen/vm_event.h). */
enum ca_register {
    CA_REG_RAX, CA_REG_RCX, CA_REG_RDX, CA_REG_RBX, CA_REG_RSP, CA_REG_RBP, CA_REG_RSI, CA_REG_RDI,
    CA_REG_R8, CA_REG_R9, CA_REG_R10, CA_REG_R11, CA_REG_R12, CA_REG_R13, CA_REG_R14, CA_REG_R15,
    CA_REG_RIP, CA_REG_RFLAGS, CA_REG_CR0, CA_REG_CR2, CA_REG_CR3, CA_REG_CR4, CA_REG_DR7, CA_REG_EFER,
    CA_REG_FS_BASE, CA_REG_GS_BASE, CA_REG_KERNEL_GS_BASE, CA_REG_LAST = CA_REG_KERNEL_GS_BASE
};

enum ca_field {
    CA_FIELD_NEW_VALUE = 1, /* CA_TRAP_REGISTER, CA_TRAP_MSR */
    CA_FIELD_OLD_VALUE,
    CA_FIELD_LEAF,          /* CA_TRAP_CPUID */
    CA_FIELD_SUBLEAF,
    CA_FIELD_DESCRIPTOR,    /* CA_TRAP_DESCRIPTOR: VM_EVENT_DESC_* */
    CA_FIELD_IS_WRITE,
    CA_FIELD_LAST = CA_FIELD_IS_WRITE
};

/*
 * A capture: words { enum ca_capture, register or field, bytes, hops, offset 0 .. offset 3 }. Memory: the address is
 * register + offset 0; for each hop, the 8 bytes there + the next offset. Read in the vCPU's present address space.
 */
#define CA_CAPTURE_WORDS 8
enum ca_capture {
    CA_CAPTURE_REGISTER = 1,
    CA_CAPTURE_FIELD,
    CA_CAPTURE_MEMORY, /* `bytes` bytes */
    CA_CAPTURE_STRING  /* up to the first zero byte, at most `bytes` */
};

/* ---- The ring: one producer, the agent; one consumer, whoever made it. ---- */

/* Words of a record before its captures. Records are whole and never wrap: a record of CA_RECORD_SKIP fills up the end. */
enum ca_record {
    CA_RECORD_HEAD,  /* u32 words of the record, u32 program number (CA_RECORD_SKIP: nothing) */
    CA_RECORD_TIME,  /* CLOCK_MONOTONIC of the agent, ns */
    CA_RECORD_VCPU,  /* u32 vCPU, u32 0 */
    CA_RECORD_SERIAL,/* events of this program before this one, dropped ones counted: a jump is what was lost */
    CA_RECORD_CR3,
    CA_RECORD_RIP,
    CA_RECORD_WORDS
};
#define CA_RECORD_SKIP UINT32_MAX
/* The longest record, in bytes: a buffer for ca_ring_drain() has at least as many. */
#define CA_RECORD_BYTES_MAX 4272
/*
 * A register or field is one word. Memory and strings are { u32 bytes that were read, u32 enum ca_reason of the fault that
 * cut it short (0: none) }, then room for `bytes`, rounded up to words; what was not read is 0.
 */

/*
 * Makes a ring of `bytes` (a power of two, 64 KiB to 64 MiB) in a memfd sealed against resizing. *fd is the descriptor to
 * hand to the agent; it stays the caller's to close. Returns a handle, closed by ca_ring_close().
 */
CA_API int32_t ca_ring_create(uint32_t bytes, void *fd);
CA_API int32_t ca_ring_close(int32_t ring);

/*
 * Copies whole records, in order, to `to` and frees their room; skip records are left out. Returns the bytes copied; 0 if there are none, and
 * then the next record will raise a CA_FRAME_WAKE. CA_E_SOURCE if the producer has written nonsense: the ring is done for.
 */
CA_API int32_t ca_ring_drain(int32_t ring, void *to, uint32_t bytes);

/* u64 { records of this program that were dropped for want of room or by its rate, events it matched in all }. */
CA_API int32_t ca_ring_counts(int32_t ring, uint32_t program, void *counts);

/* ---- The patch ledger. ----
 *
 * CA_LEDGER_FOLDER/DOMID, on a tmpfs: which bytes of the domain's memory are ours, and what was there. The agent writes it
 * ahead of each patch; whoever reads the domain's memory through this library gets the original bytes; a later agent
 * finds in it what a killed one left. Private to the library (src/ledger.h).
 */
#define CA_LEDGER_FOLDER "/run/cloudapp/patches"

#endif
