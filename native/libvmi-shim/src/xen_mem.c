/*
 * The backend of a Xen domain: foreign mappings of 2 MiB each, made by one call for 512 pages, as a call costs as much as
 * dozens of pages. A bounded number is kept; the one that was not used for longest goes first.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "ledger.h"
#include "xen.h"

#define RUN_SHIFT 21u
#define RUN_PAGES 512u
#define RUN_BYTES (1ull << RUN_SHIFT)
#define DEFAULT_CACHE (256ull << 20)
#define MAX_CACHE (64ull << 30)
/* 2 TiB of guest-physical memory: the part of it that scans know the holes of. */
#define MAX_RUNS (1ull << 20)
#define NONE UINT32_MAX

struct run {
    uint64_t number; /* guest-physical address >> 21 */
    uint8_t *base;   /* NULL: no page of it is there */
    uint64_t there[RUN_PAGES / 64];
    bool whole;
    uint32_t looked; /* the call in which pages that were missing were last asked for */
    uint32_t chain;  /* next in the bucket, or in the list of free ones */
    uint32_t older, newer;
};

struct domain {
    uint32_t domid;
    int prot;
    bool ended;   /* Xen no longer knows the domain */
    int refused; /* the errno with which Xen does not, or no longer, let us map it */
    const struct ca_xen *xen;
    void *foreign;
    struct ca_ledger_file file; /* of the breakpoints in this domain; none where there can be no agent */
    uint8_t uuid[16];
    uint8_t cover[CA_PAGE]; /* a page with breakpoints, without them */
    uint32_t call;
    uint64_t probe; /* a frame that was there when we began */
    uint64_t maps, pages;
    uint64_t count; /* runs from 0 to the end of the memory */
    uint64_t *ram;  /* one bit a run: it holds RAM, as far as its first and last page tell */
    uint32_t limit, buckets;
    uint32_t *bucket;
    uint32_t newest, oldest, free;
    struct run runs[];
};

static uint32_t bucket_of(const struct domain *d, uint64_t number) {
    return (uint32_t)((number * 0x9e3779b97f4a7c15ull) >> 32) & (d->buckets - 1);
}

/* Maps `count` frames; errors[i] is 0 or an errno. NULL if none could be mapped. */
static uint8_t *map(struct domain *d, const uint64_t *frames, uint32_t count, int *errors) {
    d->maps++;
    memset(errors, 0, count * sizeof *errors);
    errno = 0;
    uint8_t *base = d->xen->foreign_map(d->foreign, d->domid, d->prot, count, frames, errors);
    if (base == NULL) {
        if (errno == ESRCH) d->ended = true;
        if (ca_xen_refusal(errno) != 0) d->refused = ca_xen_refusal(errno);
        for (uint32_t i = 0; i < count; i++)
            if (errors[i] == 0) errors[i] = EINVAL;
    }
    for (uint32_t i = 0; i < count; i++)
        if (CA_UNLIKELY(ca_xen_refusal(errors[i]) != 0)) d->refused = ca_xen_refusal(errors[i]);
    return base;
}

static void detach(struct domain *d, uint32_t slot) {
    struct run *run = &d->runs[slot];
    if (run->newer != NONE) d->runs[run->newer].older = run->older;
    else d->newest = run->older;
    if (run->older != NONE) d->runs[run->older].newer = run->newer;
    else d->oldest = run->newer;
}

static void attach(struct domain *d, uint32_t slot) {
    struct run *run = &d->runs[slot];
    run->newer = NONE;
    run->older = d->newest;
    if (d->newest != NONE) d->runs[d->newest].newer = slot;
    else d->oldest = slot;
    d->newest = slot;
}

static void unmap(struct domain *d, struct run *run) {
    if (run->base == NULL) return;
    d->xen->foreign_unmap(d->foreign, run->base, RUN_PAGES);
    run->base = NULL;
    for (uint32_t i = 0; i < RUN_PAGES / 64; i++) d->pages -= (uint64_t)__builtin_popcountll(run->there[i]);
}

static void forget(struct domain *d, uint32_t slot) {
    uint32_t *link = &d->bucket[bucket_of(d, d->runs[slot].number)];
    while (*link != slot) link = &d->runs[*link].chain;
    *link = d->runs[slot].chain;
    detach(d, slot);
    unmap(d, &d->runs[slot]);
    d->runs[slot].chain = d->free;
    d->free = slot;
}

static void forget_all(struct domain *d) {
    while (d->newest != NONE) forget(d, d->newest);
}

static void fill(struct domain *d, struct run *run) {
    uint64_t frames[RUN_PAGES];
    int errors[RUN_PAGES];
    for (uint32_t i = 0; i < RUN_PAGES; i++) frames[i] = (run->number << 9) + i;
    memset(run->there, 0, sizeof run->there);
    run->looked = d->call;
    uint8_t *base = map(d, frames, RUN_PAGES, errors);
    uint32_t there = 0;
    for (uint32_t i = 0; i < RUN_PAGES && base != NULL; i++) {
        if (errors[i] != 0) continue;
        run->there[i / 64] |= 1ull << (i % 64);
        there++;
    }
    if (base != NULL && there == 0) {
        d->xen->foreign_unmap(d->foreign, base, RUN_PAGES);
        base = NULL;
    }
    run->base = base;
    run->whole = there == RUN_PAGES;
    d->pages += there;
}

static struct run *find(struct domain *d, uint64_t number) {
    uint32_t *bucket = &d->bucket[bucket_of(d, number)];
    for (uint32_t slot = *bucket; slot != NONE; slot = d->runs[slot].chain) {
        struct run *run = &d->runs[slot];
        if (run->number != number) continue;
        if (CA_UNLIKELY(slot != d->newest)) {
            detach(d, slot);
            attach(d, slot);
        }
        return run;
    }
    if (d->free == NONE) forget(d, d->oldest);
    uint32_t slot = d->free;
    struct run *run = &d->runs[slot];
    d->free = run->chain;
    run->number = number;
    run->base = NULL;
    fill(d, run);
    bucket = &d->bucket[bucket_of(d, number)];
    run->chain = *bucket;
    *bucket = slot;
    attach(d, slot);
    return run;
}

static inline bool has(const struct run *run, uint32_t page) { return (run->there[page / 64] >> (page % 64) & 1) != 0; }

/* A page that was missing may have come since: asks once a call, and for this page first. */
static bool come(struct domain *d, struct run *run, uint32_t page) {
    if (run->looked == d->call || d->ended) return false;
    run->looked = d->call;
    uint64_t frame = (run->number << 9) + page;
    int error;
    uint8_t *base = map(d, &frame, 1, &error);
    if (base == NULL) return false;
    d->xen->foreign_unmap(d->foreign, base, 1);
    if (error != 0) return false;
    unmap(d, run);
    fill(d, run);
    return has(run, page);
}

static uint32_t raw_at(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct domain *d = mem->state;
    if (CA_UNLIKELY(gpa >= mem->end)) return CA_F_OUTSIDE_RAM;
    struct run *run = find(d, gpa >> RUN_SHIFT);
    uint64_t in = gpa & (RUN_BYTES - 1);
    if (CA_LIKELY(run->whole)) {
        *bytes = RUN_BYTES - in;
    } else {
        uint32_t page = (uint32_t)(in / CA_PAGE);
        if (!has(run, page) && !come(d, run, page)) return d->ended ? CA_F_SOURCE : CA_F_OUTSIDE_RAM;
        uint32_t end = page + 1;
        while (end < RUN_PAGES && has(run, end)) end++;
        *bytes = (uint64_t)end * CA_PAGE - in;
    }
    *host = run->base + in;
    return CA_F_NONE;
}

/* The ledger has patches of this very domain. */
static inline bool patched(const struct domain *d) {
    const struct ca_ledger *ledger = d->file.ledger;
    return CA_UNLIKELY(ledger != NULL && atomic_load_explicit(&ledger->live, memory_order_acquire) != 0) &&
           memcmp(ledger->uuid, d->uuid, sizeof d->uuid) == 0;
}

static uint32_t xen_at(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct domain *d = mem->state;
    uint32_t reason = raw_at(mem, gpa, host, bytes);
    if (CA_LIKELY(!patched(d)) || reason != CA_F_NONE || !ca_ledger_covers(d->file.ledger, gpa, bytes)) return reason;
    uint64_t in = gpa % CA_PAGE;
    if (!ca_ledger_cover(d->file.ledger, gpa, *host - in, d->cover)) return CA_F_SOURCE;
    *host = d->cover + in;
    return CA_F_NONE;
}

static uint32_t xen_at_write(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct domain *d = mem->state;
    uint32_t reason = raw_at(mem, gpa, host, bytes);
    if (CA_LIKELY(!patched(d)) || reason != CA_F_NONE) return reason;
    ca_ledger_before(d->file.ledger, gpa, bytes);
    return *bytes == 0 ? CA_F_PATCHED : CA_F_NONE;
}

static uint64_t xen_next(struct ca_mem *mem, uint64_t gpa) {
    struct domain *d = mem->state;
    while (gpa < mem->end) {
        uint64_t number = gpa >> RUN_SHIFT;
        if (number < d->count && (d->ram[number / 64] >> (number % 64) & 1) == 0) {
            gpa = (number + 1) << RUN_SHIFT;
            continue;
        }
        struct run *run = find(d, number);
        for (uint32_t page = (uint32_t)((gpa & (RUN_BYTES - 1)) / CA_PAGE); page < RUN_PAGES; page++) {
            if (has(run, page)) return gpa;
            gpa = (gpa & ~(uint64_t)(CA_PAGE - 1)) + CA_PAGE;
        }
    }
    return UINT64_MAX;
}

/* Which runs hold RAM: asks for the first and the last page of each, many in a call. */
static void survey(struct domain *d) {
    memset(d->ram, 0, (d->count + 63) / 64 * 8);
    for (uint64_t first = 0; first < d->count && !d->ended && d->refused == 0; first += RUN_PAGES / 2) {
        uint64_t frames[RUN_PAGES];
        int errors[RUN_PAGES];
        uint32_t count = 0;
        for (uint64_t run = first; run < d->count && count < RUN_PAGES; run++) {
            frames[count++] = run << 9;
            frames[count++] = (run << 9) + RUN_PAGES - 1;
        }
        uint8_t *base = map(d, frames, count, errors);
        if (base == NULL) continue;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t run = first + i / 2;
            if (errors[i] != 0) continue;
            d->ram[run / 64] |= 1ull << (run % 64);
            if (d->probe == UINT64_MAX) d->probe = frames[i];
        }
        d->xen->foreign_unmap(d->foreign, base, count);
    }
}

static int32_t xen_begin(struct ca_mem *mem) {
    struct domain *d = mem->state;
    if (d->ended) return ca_fail(CA_E_SOURCE, "domain %u has gone", d->domid);
    if (d->refused != 0) {
        /* What is still mapped would go on being readable: a right that was taken back ends here. */
        forget_all(d);
        return ca_fail(CA_E_REVOKED, "Xen no longer lets this domain map domain %u", d->domid);
    }
    d->call++;
    /* A page taken away while it is mapped raises SIGBUS, as in a file that shrinks. */
    return ca_guard_arm();
}

static void xen_end(struct ca_mem *mem) { (void)mem; }

static void xen_invalidate(struct ca_mem *mem) {
    struct domain *d = mem->state;
    forget_all(d);
    survey(d);
}

static int32_t xen_revoke(struct ca_mem *mem) {
    /* No view outlives this: pointers into them live within one call only, and the lock is ours. */
    forget_all(mem->state);
    mem->writable = false;
    return CA_OK;
}

static void xen_close(struct ca_mem *mem) {
    struct domain *d = mem->state;
    forget_all(d);
    d->xen->foreign_close(d->foreign);
    ca_ledger_close(&d->file);
    free(d->ram);
    free(d->bucket);
    free(d);
}

static const struct ca_backend xen_backend = {.at = xen_at,
                                              .at_write = xen_at_write,
                                              .next = xen_next,
                                              .begin = xen_begin,
                                              .end = xen_end,
                                              .revoke = xen_revoke,
                                              .close = xen_close,
                                              .invalidate = xen_invalidate};

static struct domain *new_domain(uint32_t limit, uint64_t frames) {
    struct domain *d = calloc(1, sizeof *d + limit * sizeof *d->runs);
    if (d == NULL) return NULL;
    d->limit = limit;
    d->file.fd = -1;
    for (d->buckets = 16; d->buckets < limit; d->buckets *= 2) continue;
    d->count = (frames + RUN_PAGES - 1) / RUN_PAGES;
    if (d->count > MAX_RUNS) d->count = MAX_RUNS;
    d->bucket = malloc(d->buckets * sizeof *d->bucket);
    d->ram = calloc((d->count + 63) / 64, 8);
    if (d->bucket == NULL || d->ram == NULL) {
        free(d->bucket);
        free(d->ram);
        free(d);
        return NULL;
    }
    memset(d->bucket, 0xff, d->buckets * sizeof *d->bucket);
    d->newest = d->oldest = NONE;
    d->probe = UINT64_MAX;
    for (uint32_t i = 0; i < limit; i++) d->runs[i].chain = i + 1 < limit ? i + 1 : NONE;
    d->free = 0;
    return d;
}

int32_t ca_xen_open(uint32_t domid, uint32_t flags, uint64_t cache_bytes) {
    if ((flags & ~(CA_OPEN_WRITE | CA_XEN_DIRECT)) != 0 || (cache_bytes != 0 && cache_bytes < RUN_BYTES) ||
        cache_bytes > MAX_CACHE)
        return ca_fail(CA_E_ARGUMENT, "flags are wrong, or the cache is not between 2 MiB and 64 GiB");
    const struct ca_xen *xen;
    int32_t result = ca_xen_load(&xen);
    if (result != CA_OK) return result;
    uint64_t last = 0;
    uint8_t uuid[16] = {0};
    struct ca_mem *mem = NULL;
    struct domain *d = NULL;
    void *foreign = xen->foreign_open(NULL, 0);
    if (foreign == NULL) return ca_fail(CA_E_UNSUPPORTED, "foreign memory can not be opened: %s", strerror(errno));
    ca_xen_lock();
    result = (flags & CA_XEN_DIRECT) != 0 ? ca_xen_measure_direct(xen, foreign, domid, &last)
                                         : ca_xen_measure(xen, domid, uuid, &last);
    ca_xen_unlock();
    if (result != CA_OK) goto failed;
    if (last >= 1ull << 40) {
        result = ca_fail(CA_E_SOURCE, "domain %u has frames beyond 52 bits", domid);
        goto failed;
    }
    uint64_t limit = (cache_bytes == 0 ? DEFAULT_CACHE : cache_bytes) / RUN_BYTES;
    mem = calloc(1, sizeof *mem);
    d = new_domain((uint32_t)limit, last + 1);
    if (mem == NULL || d == NULL) {
        result = ca_fail(CA_E_NOMEM, "out of memory");
        goto failed;
    }
    d->domid = domid;
    d->prot = (flags & CA_OPEN_WRITE) != 0 ? PROT_READ | PROT_WRITE : PROT_READ;
    d->xen = xen;
    d->foreign = foreign;
    memcpy(d->uuid, uuid, sizeof d->uuid);
    /* Without a ledger there is nobody here who patches: a service domain, or a process without /run. */
    if ((flags & CA_XEN_DIRECT) == 0) ca_ledger_open(&d->file, domid, d->uuid, false);
    survey(d);
    if (d->refused != 0) {
        errno = d->refused;
        result = ca_xen_failed((flags & CA_OPEN_WRITE) != 0 ? "map for writing" : "map", domid);
        goto failed;
    }
    mem->ops = &xen_backend;
    mem->state = d;
    mem->writable = (flags & CA_OPEN_WRITE) != 0;
    mem->end = (last + 1) * CA_PAGE;
    result = d->pages == 0 && d->ended ? ca_fail(CA_E_OPEN, "there is no domain %u", domid) : ca_mem_register(mem);
    if (result > 0) return result;
failed:
    xen->foreign_close(foreign);
    if (d != NULL) {
        ca_ledger_close(&d->file);
        free(d->ram);
        free(d->bucket);
    }
    free(d);
    free(mem);
    return result;
}

int32_t ca_xen_probe(int32_t handle) {
    struct ca_mem *mem;
    int32_t result = ca_enter(handle, CA_KEEP, &mem);
    if (result != CA_OK) return result;
    if (mem->ops == &xen_backend) {
        struct domain *d = mem->state;
        uint64_t frame = d->probe == UINT64_MAX ? 0 : d->probe;
        int error;
        uint8_t *base = map(d, &frame, 1, &error);
        if (base != NULL) d->xen->foreign_unmap(d->foreign, base, 1);
        if (d->ended || d->refused != 0) result = xen_begin(mem);
    } else {
        result = ca_fail(CA_E_ARGUMENT, "the handle is of no Xen domain");
    }
    ca_leave(mem);
    return result;
}

int32_t ca_xen_counts(int32_t handle, void *counts) {
    if (counts == NULL || ((uintptr_t)counts & 7) != 0) return ca_fail(CA_E_ARGUMENT, "the buffer is missing");
    struct ca_mem *mem;
    int32_t result = ca_enter(handle, CA_KEEP, &mem);
    if (result != CA_OK) return result;
    if (mem->ops == &xen_backend) {
        const struct domain *d = mem->state;
        const uint64_t words[2] = {d->maps, d->pages};
        memcpy(counts, words, sizeof words);
    } else {
        result = ca_fail(CA_E_ARGUMENT, "the handle is of no Xen domain");
    }
    ca_leave(mem);
    return result;
}
