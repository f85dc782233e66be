/* One end of a vchan: set up, the turn, and the end. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "vchan.h"

static struct ca_objects all = {.what = "vchan", .lock = PTHREAD_MUTEX_INITIALIZER};

static _Atomic uint8_t *own_live(struct ca_vchan *vchan) {
    return vchan->server ? &vchan->page->srv_live : &vchan->page->cli_live;
}

static uint32_t peer_live(struct ca_vchan *vchan) {
    uint8_t live = atomic_load_explicit(vchan->server ? &vchan->page->cli_live : &vchan->page->srv_live, memory_order_acquire);
    if (live == 2 && vchan->server) return CA_VCHAN_AWAITED;
    return live == 1 ? CA_VCHAN_LIVE : CA_VCHAN_GONE;
}

static int32_t notify(struct ca_vchan *vchan) {
    if (vchan->peer_fd < 0) return ca_evtchn_notify(vchan->fd, vchan->port);
    uint64_t one = 1;
    if (write(vchan->peer_fd, &one, sizeof one) == (ssize_t)sizeof one || errno == EAGAIN) return CA_OK;
    return ca_fail(CA_E_SOURCE, "the other end could not be notified: %s", strerror(errno));
}

static void free_vchan(struct ca_object *object) {
    struct ca_vchan *vchan = (struct ca_vchan *)object;
    if (vchan->page != NULL) {
        atomic_store_explicit(own_live(vchan), 0, memory_order_release);
        /* A peer that has gone can not be notified. */
        if (vchan->fd >= 0) notify(vchan);
    }
    ca_grants_free(&vchan->left_grants);
    ca_grants_free(&vchan->right_grants);
    ca_grants_free(&vchan->page_grants);
    if (vchan->memory != NULL) ca_vchan_memory_release(vchan->memory);
    else if (vchan->fd >= 0) ca_evtchn_close(vchan->fd);
    free(vchan);
}

static struct ca_vchan *create(bool server) {
    struct ca_vchan *vchan = calloc(1, sizeof *vchan);
    if (vchan == NULL) {
        ca_fail(CA_E_NOMEM, "out of memory");
        return NULL;
    }
    vchan->object.free = free_vchan;
    vchan->server = server;
    vchan->fd = vchan->peer_fd = -1;
    vchan->page_grants.fd = vchan->left_grants.fd = vchan->right_grants.fd = -1;
    return vchan;
}

int32_t ca_vchan_hold(struct ca_vchan *vchan) { return ca_objects_add(&all, &vchan->object); }

int32_t ca_vchan_start(struct ca_vchan *vchan, uint32_t left_order, uint32_t right_order, uint8_t *left, uint8_t *right) {
    uint8_t *page = (uint8_t *)vchan->page;
    struct ca_ring rings[2] = {
        {&vchan->page->left, left_order < 12 ? page + (1u << left_order) : left, 1u << left_order, 0},
        {&vchan->page->right, right_order < 12 ? page + (1u << right_order) : right, 1u << right_order, 0},
    };
    vchan->in = rings[vchan->server ? 0 : 1];
    vchan->out = rings[vchan->server ? 1 : 0];
    vchan->in.mine = atomic_load(&vchan->in.shared->cons);
    vchan->out.mine = atomic_load(&vchan->out.shared->prod);
    uint32_t bytes;
    int32_t result = ca_ring_ready(&vchan->in, &bytes);
    return result == CA_OK ? ca_ring_space(&vchan->out, &bytes) : result;
}

static int32_t serve(struct ca_vchan *vchan, uint32_t domid, uint32_t read_bytes, uint32_t write_bytes, uint32_t *info) {
    uint32_t left, right, ref;
    ca_vchan_orders(read_bytes, write_bytes, &left, &right);
    uint32_t left_pages = ca_vchan_ring_pages(left), right_pages = ca_vchan_ring_pages(right);
    int32_t result = ca_grants_make(&vchan->page_grants, domid, CA_GRANTS_WRITE, 1, &ref);
    if (result != CA_OK) return result;
    struct ca_vchan_page *page = (struct ca_vchan_page *)vchan->page_grants.base;
    if (left_pages > 0) result = ca_grants_make(&vchan->left_grants, domid, CA_GRANTS_WRITE, left_pages, page->grants);
    if (result == CA_OK && right_pages > 0)
        result = ca_grants_make(&vchan->right_grants, domid, CA_GRANTS_WRITE, right_pages, page->grants + left_pages);
    if (result != CA_OK) return result;
    page->left_order = (uint16_t)left;
    page->right_order = (uint16_t)right;
    atomic_store(&page->cli_live, 2);
    atomic_store(&page->srv_live, 1);
    /* The client is to tell when it has come. */
    atomic_store(&page->cli_notify, CA_VCHAN_NOTIFY_WRITE);
    vchan->page = page;
    int32_t fd = ca_evtchn_open(domid, CA_EVTCHN_UNBOUND, &vchan->port);
    if (fd < 0) return fd;
    vchan->fd = fd;
    result = ca_grants_on_unmap(&vchan->page_grants, offsetof(struct ca_vchan_page, srv_live), vchan->port);
    if (result != CA_OK) return result;
    info[3] = ref;
    info[4] = vchan->port;
    return ca_vchan_start(vchan, left, right, vchan->left_grants.base, vchan->right_grants.base);
}

static int32_t connect_to(struct ca_vchan *vchan, uint32_t domid, uint32_t ref, uint32_t port, uint32_t *info) {
    int32_t result = ca_grants_take(&vchan->page_grants, domid, CA_GRANTS_WRITE, 1, &ref);
    if (result != CA_OK) return result;
    struct ca_vchan_page *page = (struct ca_vchan_page *)vchan->page_grants.base;
    /* Once: the server may change them under us. */
    uint32_t left = *(volatile uint16_t *)&page->left_order, right = *(volatile uint16_t *)&page->right_order;
    result = ca_vchan_layout(left, right);
    if (result != CA_OK) return result;
    uint32_t left_pages = ca_vchan_ring_pages(left), right_pages = ca_vchan_ring_pages(right);
    uint32_t refs[2 * (1u << (CA_VCHAN_ORDER_MAX - 12))];
    memcpy(refs, page->grants, (left_pages + right_pages) * sizeof *refs);
    if (left_pages > 0) result = ca_grants_take(&vchan->left_grants, domid, CA_GRANTS_WRITE, left_pages, refs);
    if (result == CA_OK && right_pages > 0)
        result = ca_grants_take(&vchan->right_grants, domid, CA_GRANTS_WRITE, right_pages, refs + left_pages);
    if (result != CA_OK) return result;
    if (atomic_load(&page->srv_live) != 1) return ca_fail(CA_E_OPEN, "the server of domain %u has gone", domid);
    int32_t fd = ca_evtchn_open(domid, port, &vchan->port);
    if (fd < 0) return fd;
    vchan->fd = fd;
    vchan->page = page;
    result = ca_grants_on_unmap(&vchan->page_grants, offsetof(struct ca_vchan_page, cli_live), vchan->port);
    if (result == CA_OK) result = ca_vchan_start(vchan, left, right, vchan->left_grants.base, vchan->right_grants.base);
    if (result != CA_OK) return result;
    atomic_store(&page->cli_live, 1);
    atomic_fetch_or(&page->srv_notify, CA_VCHAN_NOTIFY_WRITE);
    info[3] = ref;
    info[4] = port;
    return notify(vchan);
}

static int32_t finish(struct ca_vchan *vchan, int32_t result, uint32_t *info, void *out) {
    if (result != CA_OK) {
        free_vchan(&vchan->object);
        return result;
    }
    info[0] = (uint32_t)vchan->fd;
    info[1] = vchan->in.size;
    info[2] = vchan->out.size;
    memcpy(out, info, CA_VCHAN_INFO_WORDS * sizeof *info);
    return ca_vchan_hold(vchan);
}

int32_t ca_vchan_serve(uint32_t domid, uint32_t read_bytes, uint32_t write_bytes, void *out) {
    if (out == NULL || read_bytes < CA_VCHAN_RING_MIN || read_bytes > CA_VCHAN_RING_MAX || write_bytes < CA_VCHAN_RING_MIN ||
        write_bytes > CA_VCHAN_RING_MAX)
        return ca_fail(CA_E_ARGUMENT, "rings have %u to %u bytes, not %u and %u", CA_VCHAN_RING_MIN, CA_VCHAN_RING_MAX, read_bytes,
                       write_bytes);
    struct ca_vchan *vchan = create(true);
    if (vchan == NULL) return CA_E_NOMEM;
    uint32_t info[CA_VCHAN_INFO_WORDS] = {0};
    return finish(vchan, serve(vchan, domid, read_bytes, write_bytes, info), info, out);
}

int32_t ca_vchan_connect(uint32_t domid, uint32_t ref, uint32_t port, void *out) {
    if (out == NULL || port == CA_EVTCHN_UNBOUND) return ca_fail(CA_E_ARGUMENT, "%u is no event channel", port);
    struct ca_vchan *vchan = create(false);
    if (vchan == NULL) return CA_E_NOMEM;
    uint32_t info[CA_VCHAN_INFO_WORDS] = {0};
    return finish(vchan, connect_to(vchan, domid, ref, port, info), info, out);
}

/* What one turn has still to do, and has done. */
struct turn {
    const uint8_t *out;
    uint8_t *in;
    uint32_t out_left, in_left, in_whole;
    uint32_t ready, space;
    uint32_t did;     /* CA_VCHAN_NOTIFY_* of what was done since the peer was last told */
    uint32_t spun_us; /* spent looking for the peer */
    bool bulk;        /* the peer had filled half a ring: there is more where this came from */
};

static int32_t copy(struct ca_vchan *vchan, struct turn *turn) {
    int32_t result = ca_ring_space(&vchan->out, &turn->space);
    if (result == CA_OK) result = ca_ring_ready(&vchan->in, &turn->ready);
    if (result != CA_OK) return result;
    uint32_t put = turn->out_left < turn->space ? turn->out_left : turn->space;
    if (put > 0) {
        ca_ring_put(&vchan->out, turn->out, put);
        turn->out += put;
        turn->out_left -= put;
        turn->space -= put;
        turn->did |= CA_VCHAN_NOTIFY_WRITE;
    }
    uint32_t take = turn->in_left < turn->ready ? turn->in_left : turn->ready;
    if (take > 0) {
        turn->bulk |= turn->ready >= vchan->in.size / 2;
        ca_ring_take(&vchan->in, turn->in, take);
        turn->in += take;
        turn->in_left -= take;
        turn->ready -= take;
        turn->did |= CA_VCHAN_NOTIFY_READ;
    }
    return CA_OK;
}

/* Wakes the peer if it asked to be told of what was done. */
static int32_t tell(struct ca_vchan *vchan, struct turn *turn) {
    if (turn->did == 0) return CA_OK;
    /* The indexes must be seen before the request is looked for: a full barrier, as the exchange is. */
    _Atomic uint8_t *asked = vchan->server ? &vchan->page->srv_notify : &vchan->page->cli_notify;
    uint8_t before = atomic_fetch_and(asked, (uint8_t)~turn->did);
    uint32_t wanted = before & turn->did;
    turn->did = 0;
    return wanted != 0 ? notify(vchan) : CA_OK;
}

/* Asks to be told. What happened before the peer saw that must be looked for once more. */
static void ask(struct ca_vchan *vchan, uint32_t bits) {
    atomic_fetch_or(vchan->server ? &vchan->page->cli_notify : &vchan->page->srv_notify, (uint8_t)bits);
}

static bool wants(const struct turn *turn) {
    return turn->out_left > 0 || (turn->in_left > 0 && (turn->in_left == turn->in_whole || turn->bulk));
}

/*
 * Looks for a peer that is at work, for as long as its last move is less than `spin_ns` ago, in all no longer than
 * CA_VCHAN_SPINS times that: a peer that moves a byte at a time gets no more of this thread. False if it did not move at all.
 */
#define CA_VCHAN_SPINS 8
static int32_t spin(struct ca_vchan *vchan, uint64_t spin_ns, struct turn *turn, bool *moved) {
    const uint64_t begun = ca_now(), end = begun + CA_VCHAN_SPINS * spin_ns;
    uint64_t until = begun + spin_ns;
    *moved = false;
    uint64_t now = begun;
    for (; now < until && now < end && wants(turn) && peer_live(vchan) == CA_VCHAN_LIVE; now = ca_now()) {
        const uint32_t before = turn->out_left + turn->in_left;
        /* The clock is dear where it is a system call. */
        for (int i = 0; i < 64 && turn->out_left + turn->in_left == before; i++) {
            __builtin_ia32_pause();
            int32_t result = copy(vchan, turn);
            if (result != CA_OK) return result;
        }
        if (turn->out_left + turn->in_left == before) continue;
        *moved = true;
        int32_t result = tell(vchan, turn);
        if (result != CA_OK) return result;
        if (wants(turn)) until = ca_now() + spin_ns;
    }
    turn->spun_us = (uint32_t)((now - begun) / 1000);
    return CA_OK;
}

/*
 * Spinning pays if the peer moves sooner than sleeping and being woken takes. Whether it does is learned: each time it did
 * not halves how long is looked next, down to nothing; one that moved soon after this end went to sleep begins anew.
 */
static uint64_t patience(struct ca_vchan *vchan, uint32_t flags, uint64_t most) {
    if (flags & CA_VCHAN_EVENT && vchan->slept != 0 && ca_now() - vchan->slept < 4 * most) vchan->doubt = 0;
    vchan->slept = 0;
    return vchan->doubt < 4 ? most >> vchan->doubt : 0;
}

static int32_t take_turn(struct ca_vchan *vchan, uint32_t flags, uint32_t spin_us, struct turn *turn) {
    int32_t result = CA_OK;
    if (flags & CA_VCHAN_EVENT && vchan->peer_fd < 0) result = ca_evtchn_unmask(vchan->fd, vchan->port);
    if (result == CA_OK) result = copy(vchan, turn);
    if (result == CA_OK) result = tell(vchan, turn);
    const uint64_t spin_ns = spin_us > 0 ? patience(vchan, flags, (uint64_t)spin_us * 1000) : 0;
    if (result == CA_OK && spin_ns > 0 && wants(turn) && peer_live(vchan) == CA_VCHAN_LIVE) {
        bool moved;
        result = spin(vchan, spin_ns, turn, &moved);
        if (moved) vchan->doubt = 0;
        else vchan->doubt++;
    }
    if (result != CA_OK) return result;
    uint32_t bits = (turn->out_left > 0 ? CA_VCHAN_NOTIFY_READ : 0) |
                    (turn->ready == 0 && turn->in_whole > 0 ? CA_VCHAN_NOTIFY_WRITE : 0);
    if (bits == 0) return CA_OK;
    ask(vchan, bits);
    result = copy(vchan, turn);
    if (result == CA_OK) result = tell(vchan, turn);
    if (spin_us > 0 && wants(turn)) vchan->slept = ca_now();
    return result;
}

int32_t ca_vchan_turn(int32_t handle, uint32_t flags, uint32_t spin_us, const void *out, uint32_t out_bytes, void *in,
                      uint32_t in_bytes, void *status) {
    struct ca_vchan *vchan = (struct ca_vchan *)ca_objects_enter(&all, handle);
    if (vchan == NULL) return CA_E_HANDLE;
    struct turn turn = {.out = out, .in = in, .out_left = out_bytes, .in_left = in_bytes, .in_whole = in_bytes};
    int32_t result = status == NULL || spin_us > 10000 ? ca_fail(CA_E_ARGUMENT, "spins are of at most 10000 us, not %u", spin_us)
                     : vchan->broken                   ? ca_fail(CA_E_PROTOCOL, "the peer broke the protocol")
                                                       : take_turn(vchan, flags, spin_us, &turn);
    if (result == CA_E_PROTOCOL) vchan->broken = true;
    if (result == CA_OK) {
        /* Last: what a peer wrote before it went is in `ready` only if it is looked for after its end was seen. */
        uint32_t live = peer_live(vchan);
        if (live == CA_VCHAN_GONE) result = ca_ring_ready(&vchan->in, &turn.ready);
        if (result == CA_E_PROTOCOL) vchan->broken = true;
        uint32_t words[CA_VCHAN_STATUS_WORDS] = {out_bytes - turn.out_left, in_bytes - turn.in_left, live, turn.ready, turn.space, turn.spun_us};
        memcpy(status, words, sizeof words);
    }
    ca_objects_leave(&all, &vchan->object);
    return result;
}

int32_t ca_vchan_close(int32_t handle) { return ca_objects_close(&all, handle); }

struct ca_vchan *ca_vchan_behind(int32_t handle) {
    struct ca_vchan *vchan = (struct ca_vchan *)ca_objects_enter(&all, handle);
    if (vchan != NULL) ca_objects_leave(&all, &vchan->object);
    return vchan;
}
