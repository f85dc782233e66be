/*
 * libcloudapp_shim: a Xen domain as a source. The rules of cloudapp.h hold. Xen's libraries are loaded at run time: without
 * them, or without Xen, each call gives CA_E_UNSUPPORTED with a text that names what is missing and the fix.
 */
#ifndef CLOUDAPP_XEN_H
#define CLOUDAPP_XEN_H

#include "cloudapp.h"

/* u64 words of a row of ca_xen_domains. */
#define CA_XEN_DOMAIN_WORDS 8
/* u64 words of ca_xen_vcpu. */
#define CA_XEN_VCPU_WORDS 14

/* Flags of a domain. */
enum ca_xen_flags {
    CA_XEN_DYING = 1,
    CA_XEN_HVM = 2, /* HVM or PVH: page tables of its own */
    CA_XEN_SHUTDOWN = 4,
    CA_XEN_PAUSED = 8
};

/*
 * Domains from `first` on, in order. `rows`: u64 { domid, flags, pages, vCPUs online, highest vCPU id (2^32-1: none),
 * uuid bytes 0..7, uuid bytes 8..15 (as they lie in memory), 0 }. Returns the number of rows, or an error.
 */
CA_API int32_t ca_xen_domains(uint32_t first, void *rows, uint32_t count);

/*
 * Xen's release, major << 16 | minor: what it tells every domain. 0 where this domain's kernel passes on nothing, which
 * since XSA-482 is every domU's xen-privcmd without `unrestricted=1`.
 */
CA_API int32_t ca_xen_version(void);

/*
 * The value of a key of xenstore, NUL-terminated and cut to `size`; returns its full length, CA_E_OPEN if there is no such
 * key.
 */
CA_API int32_t ca_xen_store(const void *path, void *value, uint32_t size);

/*
 * The memory of a domain with page tables of its own. `cache_bytes`: how much of it may be mapped at a time (at least
 * 2 MiB), 0: 256 MiB. `flags`: CA_OPEN_WRITE. Returns a handle of the verbs of cloudapp.h. An address whose page the
 * domain gave back (ballooning) reads as it last was until its mapping goes: ca_mem_invalidate drops them all.
 */
CA_API int32_t ca_xen_open(uint32_t domid, uint32_t flags, uint64_t cache_bytes);

/*
 * Flag of ca_xen_open: this domain is no control domain and may, by FLASK, map the other and perhaps nothing else. Nothing
 * else is asked of Xen then; where the memory ends is found by mapping if Xen does not say.
 */
#define CA_XEN_DIRECT 256u

/*
 * Asks Xen for one page that is mapped already: CA_OK while it gives it, CA_E_SOURCE once the domain has gone, CA_E_REVOKED once
 * Xen refuses, and then nothing stays mapped. Each verb does the same when it comes upon a refusal.
 */
CA_API int32_t ca_xen_probe(int32_t mem);

/* How many times Xen was asked to map since the handle was opened, and how many pages are mapped now. */
CA_API int32_t ca_xen_counts(int32_t mem, void *counts);

/*
 * Registers of one vCPU: u64 { rip, rsp, rflags, cr0, cr3, cr4, efer, gs base, kernel gs base, idt base, idt limit,
 * gdt base, lstar, 0 }. CA_E_OPEN for a vCPU that is not up.
 */
CA_API int32_t ca_xen_vcpu(uint32_t domid, uint32_t vcpu, void *out);

/* Xen counts the pauses of the control domains (up to 255): each wants one unpause. Nothing undoes one when its caller dies. */
CA_API int32_t ca_xen_pause(uint32_t domid);
CA_API int32_t ca_xen_unpause(uint32_t domid);

#endif
