/*
 * libcloudapp_shim: memory and signals shared between Xen domains, over Linux's /dev/xen/{evtchn,gntalloc,gntdev}, whose
 * ioctls are a stable ABI; no library of Xen is needed. The rules of cloudapp.h hold. The peer domain is hostile: what it
 * writes into shared memory is read once, checked, and never an index into anything unchecked.
 */
#ifndef CLOUDAPP_VCHAN_H
#define CLOUDAPP_VCHAN_H

#include "cloudapp.h"

/*
 * A descriptor that Node wraps in a net.Socket, and that ca_poll_join() then makes stand for `source`: so the event loop
 * itself polls and reads a device it has no type for. The caller owns it.
 */
CA_API int32_t ca_poll_new(void);
CA_API int32_t ca_poll_join(int32_t fd, int32_t source);

/* "No port of the peer": allocate one for it to bind. */
#define CA_EVTCHN_UNBOUND 0xffffffffu

/*
 * One event channel with domain `domid`: a fresh port for it to bind, or bound to its `remote` port. Returns a descriptor of
 * /dev/xen/evtchn, nonblocking, that is readable (4 bytes: the port) when the peer has notified; `port`: u32. The port is
 * masked when it has been read: ca_evtchn_unmask() before looking at what the event is about.
 */
CA_API int32_t ca_evtchn_open(uint32_t domid, uint32_t remote, void *port);
/* 1 if Xen has a domain of this number, 0 if not; any domain may ask. One that is being destroyed counts until it is gone. */
CA_API int32_t ca_domain_lives(uint32_t domid);
CA_API int32_t ca_evtchn_notify(int32_t fd, uint32_t port);
CA_API int32_t ca_evtchn_unmask(int32_t fd, uint32_t port);
CA_API int32_t ca_evtchn_close(int32_t fd);

/* Most pages of one ca_grants_*. */
#define CA_GRANTS_MAX 1024u
/* Flags of ca_grants_share and ca_grants_map. */
#define CA_GRANTS_WRITE 1u

/*
 * Shares `pages` fresh zeroed pages with domain `domid` (writable by it with CA_GRANTS_WRITE). `refs`: u32 per page, the
 * grant references. Returns a handle. CA_E_NOMEM when gntalloc's limit is used up.
 */
CA_API int32_t ca_grants_share(uint32_t domid, uint32_t flags, uint32_t pages, void *refs);
/* Maps pages domain `domid` shared, one after the other. `refs`: u32 per page. Returns a handle. */
CA_API int32_t ca_grants_map(uint32_t domid, uint32_t flags, uint32_t pages, const void *refs);
CA_API int32_t ca_grants_read(int32_t grants, uint64_t at, void *to, uint32_t bytes);
CA_API int32_t ca_grants_write(int32_t grants, uint64_t at, const void *from, uint32_t bytes);
/*
 * What the kernel does when these pages are unmapped here, also because the process died: the byte at `at` becomes 0, and
 * the peer of local `port` is notified (CA_EVTCHN_UNBOUND: nobody).
 */
CA_API int32_t ca_grants_notify(int32_t grants, uint64_t at, uint32_t port);
CA_API int32_t ca_grants_close(int32_t grants);

/* Sizes of a vchan's rings: powers of two. */
#define CA_VCHAN_RING_MIN 1024u
#define CA_VCHAN_RING_MAX (1024u * 1024u)
/* u32 words of `info` and of `status`. */
#define CA_VCHAN_INFO_WORDS 8
#define CA_VCHAN_STATUS_WORDS 8

/*
 * The ends of a vchan (xen/io/libxenvchan.h). Each returns a handle and fills `info`: u32 { descriptor to poll, size of the
 * ring read here, size of the ring written here, grant reference of the shared page, port to bind, 0... }. The descriptor
 * stays the library's: hand it to ca_poll_join().
 *
 * ca_vchan_serve: shares rings of at least so many bytes with `domid`; the caller publishes reference and port.
 * ca_vchan_connect: to what a server published. CA_E_PROTOCOL if the shared page is malformed.
 * ca_vchan_pair: both ends in this process, over plain memory; `handles`: i32[2], `info`: twice CA_VCHAN_INFO_WORDS. For tests.
 */
CA_API int32_t ca_vchan_serve(uint32_t domid, uint32_t read_bytes, uint32_t write_bytes, void *info);
CA_API int32_t ca_vchan_connect(uint32_t domid, uint32_t ref, uint32_t port, void *info);
CA_API int32_t ca_vchan_pair(uint32_t bytes, void *handles, void *info);

/* Flags of ca_vchan_turn. */
enum ca_vchan_flags {
    CA_VCHAN_EVENT = 1 /* its descriptor was readable and has been read: take further events */
};

/* What a peer is, status[2]. */
enum ca_vchan_peer { CA_VCHAN_GONE = 0, CA_VCHAN_LIVE = 1, CA_VCHAN_AWAITED = 2 };

/*
 * The one call of the hot path: puts what fits of `out` into one ring, takes what is there of the other into `in`, asks the
 * peer to wake this side for what could not be done, and wakes the peer if it asked. Before it gives up on a ring that is
 * full or empty, or while a peer that fills the ring goes on, it looks for up to `spin_us` whether the peer is at work on it:
 * say what it costs to sleep and be woken. It looks for less, or not at all, where that has not paid of late, and takes no
 * more than eight times that. `status`: u32 { bytes put, bytes taken, enum ca_vchan_peer, bytes left to read, room left to
 * write, us spent looking, 0... }.
 *
 * CA_E_PROTOCOL if the peer wrote impossible indexes: nothing was copied, and nothing will be on this handle.
 */
CA_API int32_t ca_vchan_turn(int32_t vchan, uint32_t flags, uint32_t spin_us, const void *out, uint32_t out_bytes, void *in,
                             uint32_t in_bytes, void *status);

/* Tells the peer, which may still read what is in its ring, and lets go of everything. */
CA_API int32_t ca_vchan_close(int32_t vchan);

#endif
