/* Private to the vchan: the shared page, one ring of it, and one end of the whole. */
#ifndef CA_VCHAN_H
#define CA_VCHAN_H

#include <stdatomic.h>

#include "grants.h"

/* xen/io/libxenvchan.h: struct ring_shared, struct vchan_interface. */
struct ca_vchan_indexes {
    _Atomic uint32_t cons, prod;
};
struct ca_vchan_page {
    struct ca_vchan_indexes left, right; /* left: written by the client; right: by the server */
    uint16_t left_order, right_order;
    _Atomic uint8_t cli_live, srv_live;
    _Atomic uint8_t cli_notify, srv_notify;
    uint32_t grants[];
};
_Static_assert(sizeof(struct ca_vchan_page) == 24, "as in xen/io/libxenvchan.h");
#define CA_VCHAN_NOTIFY_WRITE 1u
#define CA_VCHAN_NOTIFY_READ 2u
#define CA_VCHAN_ORDER_MIN 10u
#define CA_VCHAN_ORDER_MAX 20u

/*
 * One ring as one end sees it. Its own index is kept here: the copy in shared memory is only for the peer, which can write
 * it too.
 */
struct ca_ring {
    struct ca_vchan_indexes *shared;
    uint8_t *data;
    uint32_t size; /* a power of two */
    uint32_t mine; /* cons of the ring that is read, prod of the one that is written */
};

/*
 * vchan_ring.c. Bytes that can be taken from the ring that is read, or put into the one that is written; CA_E_PROTOCOL if the
 * indexes in shared memory are impossible.
 */
int32_t ca_ring_ready(const struct ca_ring *ring, uint32_t *bytes);
int32_t ca_ring_space(const struct ca_ring *ring, uint32_t *bytes);
/* Copies, wraps, and publishes the index. `bytes` is at most what ready or space said. */
void ca_ring_take(struct ca_ring *ring, void *to, uint32_t bytes);
void ca_ring_put(struct ca_ring *ring, const void *from, uint32_t bytes);

/* The memory of a pair inside this process. */
struct ca_vchan_memory;

struct ca_vchan {
    struct ca_object object;
    struct ca_vchan_page *page;
    struct ca_ring in, out;
    bool server, broken;
    uint32_t doubt; /* spins of late in which the peer did not move */
    uint64_t slept; /* when this end last went to sleep for the peer; 0: it did not */
    int fd; /* readable when the peer has notified */
    uint32_t port;
    int peer_fd; /* of a pair: the eventfd of the other end; -1: this is Xen */
    struct ca_grants page_grants, left_grants, right_grants;
    struct ca_vchan_memory *memory;
};

/* vchan_layout.c: which orders rings of these sizes get, and what of a page is well-formed. */
void ca_vchan_orders(uint32_t left_bytes, uint32_t right_bytes, uint32_t *left, uint32_t *right);
int32_t ca_vchan_layout(uint32_t left_order, uint32_t right_order);
/* Pages of a ring outside the shared page; 0 if it lies in it. */
static inline uint32_t ca_vchan_ring_pages(uint32_t order) { return order < 12 ? 0 : 1u << (order - 12); }

/* vchan.c. For tests: the end behind a handle, whose page a hostile peer writes. Not locked. */
struct ca_vchan *ca_vchan_behind(int32_t handle);
/* Begins where the indexes stand. */
int32_t ca_vchan_start(struct ca_vchan *vchan, uint32_t left_order, uint32_t right_order, uint8_t *left, uint8_t *right);
int32_t ca_vchan_hold(struct ca_vchan *vchan);

/* vchan_pair.c */
void ca_vchan_memory_release(struct ca_vchan_memory *memory);

#endif
