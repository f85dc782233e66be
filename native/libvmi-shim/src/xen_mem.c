/* The backend of a Xen domain: foreign mappings, without the breakpoints that an agent has put into it. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "xen_runs.h"

#define DEFAULT_CACHE (256ull << 20)
#define MAX_CACHE (64ull << 30)

/* Mapping takes as long as hundreds of reads, and another run may have gone for it. */
static void mapped(struct ca_mem *mem) {
    mem->costly = true;
    mem->moved++;
}

static struct ca_run *run_of(struct ca_mem *mem, uint64_t number) {
    struct ca_domain *d = mem->state;
    uint64_t maps = d->maps;
    struct ca_run *run = ca_run_find(d, number);
    if (CA_UNLIKELY(d->maps != maps)) mapped(mem);
    return run;
}

static uint32_t raw_at(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct ca_domain *d = mem->state;
    if (CA_UNLIKELY(gpa >= mem->end)) return CA_F_OUTSIDE_RAM;
    struct ca_run *run = run_of(mem, gpa >> RUN_SHIFT);
    uint64_t in = gpa & (RUN_BYTES - 1);
    if (CA_LIKELY(run->whole)) {
        *bytes = RUN_BYTES - in;
    } else {
        uint32_t page = (uint32_t)(in / CA_PAGE);
        if (!ca_run_has(run, page)) {
            bool come = ca_run_come(d, run, page);
            mapped(mem);
            if (!come) return d->ended ? CA_F_SOURCE : CA_F_OUTSIDE_RAM;
        }
        uint32_t end = page + 1;
        while (end < RUN_PAGES && ca_run_has(run, end)) end++;
        *bytes = (uint64_t)end * CA_PAGE - in;
    }
    *host = run->base + in;
    return CA_F_NONE;
}

/* The ledger has patches of this very domain. */
static inline bool patched(const struct ca_domain *d) {
    const struct ca_ledger *ledger = d->file.ledger;
    return CA_UNLIKELY(ledger != NULL && atomic_load_explicit(&ledger->live, memory_order_acquire) != 0) &&
           memcmp(ledger->uuid, d->uuid, sizeof d->uuid) == 0;
}

static uint32_t xen_at(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct ca_domain *d = mem->state;
    uint32_t reason = raw_at(mem, gpa, host, bytes);
    if (CA_LIKELY(!patched(d)) || reason != CA_F_NONE || !ca_ledger_covers(d->file.ledger, gpa, bytes)) return reason;
    uint64_t in = gpa % CA_PAGE;
    if (!ca_ledger_cover(d->file.ledger, gpa, *host - in, d->cover)) return CA_F_SOURCE;
    *host = d->cover + in;
    return CA_F_NONE;
}

static void xen_ready(struct ca_mem *mem, const uint64_t *gpas, uint32_t count, const uint8_t **hosts) {
    struct ca_domain *d = mem->state;
    const uint64_t memory_end = mem->end, use = ++d->uses;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t gpa = gpas[i], in = gpa & (RUN_BYTES - 1);
        hosts[i] = NULL;
        if (CA_UNLIKELY(gpa >= memory_end)) continue; /* CA_NOWHERE too */
        const struct ca_run *run = ca_run_ready(d, gpa >> RUN_SHIFT, use);
        if (run != NULL && (CA_LIKELY(run->whole) || ca_run_has(run, (uint32_t)(in / CA_PAGE)))) hosts[i] = run->base + in;
    }
}

static uint32_t xen_at_write(struct ca_mem *mem, uint64_t gpa, uint8_t **host, uint64_t *bytes) {
    struct ca_domain *d = mem->state;
    uint32_t reason = raw_at(mem, gpa, host, bytes);
    if (CA_LIKELY(!patched(d)) || reason != CA_F_NONE) return reason;
    ca_ledger_before(d->file.ledger, gpa, bytes);
    return *bytes == 0 ? CA_F_PATCHED : CA_F_NONE;
}

/* Whether a run holds RAM, as far as is known; of what lies further than that, perhaps. */
static bool promising(const struct ca_domain *d, uint64_t number) {
    return number >= d->count || (d->ram[number / 64] >> (number % 64) & 1) != 0;
}

static uint64_t xen_next(struct ca_mem *mem, uint64_t gpa) {
    struct ca_domain *d = mem->state;
    while (gpa < mem->end) {
        uint64_t number = gpa >> RUN_SHIFT;
        if (!promising(d, number)) {
            gpa = (number + 1) << RUN_SHIFT;
            continue;
        }
        struct ca_run *run = run_of(mem, number);
        for (uint32_t page = (uint32_t)((gpa & (RUN_BYTES - 1)) / CA_PAGE); page < RUN_PAGES; page++) {
            if (ca_run_has(run, page)) return gpa;
            gpa = (gpa & ~(uint64_t)(CA_PAGE - 1)) + CA_PAGE;
        }
    }
    return UINT64_MAX;
}

/* One page for each place, all by one call. */
static uint32_t xen_glance(struct ca_mem *mem, uint64_t *gpa, uint64_t last, uint64_t step, uint64_t *places, uint64_t *words) {
    struct ca_domain *d = mem->state;
    uint64_t frames[CA_GLANCE], at = *gpa;
    int errors[CA_GLANCE];
    uint32_t count = 0, there = 0;
    for (; count < CA_GLANCE && at <= last && at < mem->end; at += step) {
        if (!promising(d, at >> RUN_SHIFT)) continue;
        places[count] = at;
        frames[count++] = at / CA_PAGE;
    }
    *gpa = at < mem->end ? at : UINT64_MAX;
    if (count == 0) return 0;
    mem->costly = true;
    uint8_t *base = ca_domain_map(d, frames, count, errors);
    if (base == NULL) return 0;
    for (uint32_t i = 0; i < count; i++) {
        if (errors[i] != 0 || ca_guard_load64(&words[there], base + i * CA_PAGE + places[i] % CA_PAGE) != 0) continue;
        places[there++] = places[i];
    }
    d->xen->foreign_unmap(d->foreign, base, count);
    return there;
}

/* Which runs hold RAM: asks for the first and the last page of each, many in a call. */
static void survey(struct ca_domain *d) {
    memset(d->ram, 0, (d->count + 63) / 64 * 8);
    for (uint64_t first = 0; first < d->count && !d->ended && d->refused == 0; first += RUN_PAGES / 2) {
        uint64_t frames[RUN_PAGES];
        int errors[RUN_PAGES];
        uint32_t count = 0;
        for (uint64_t run = first; run < d->count && count < RUN_PAGES; run++) {
            frames[count++] = run << 9;
            frames[count++] = (run << 9) + RUN_PAGES - 1;
        }
        uint8_t *base = ca_domain_map(d, frames, count, errors);
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
    struct ca_domain *d = mem->state;
    if (d->ended) return ca_fail(CA_E_SOURCE, "domain %u has gone", d->domid);
    if (d->refused != 0) {
        /* What is still mapped would go on being readable: a right that was taken back ends here. */
        ca_runs_forget(d);
        return ca_fail(CA_E_REVOKED, "Xen no longer lets this domain map domain %u", d->domid);
    }
    d->call++;
    return CA_OK;
}

static void xen_end(struct ca_mem *mem) { (void)mem; }

static void xen_invalidate(struct ca_mem *mem) {
    struct ca_domain *d = mem->state;
    ca_runs_forget(d);
    survey(d);
}

static int32_t xen_revoke(struct ca_mem *mem) {
    /* No view outlives this: pointers into them live within one call only, and the lock is ours. */
    ca_runs_forget(mem->state);
    mem->writable = false;
    return CA_OK;
}

static void xen_close(struct ca_mem *mem) {
    struct ca_domain *d = mem->state;
    ca_runs_forget(d);
    d->xen->foreign_close(d->foreign);
    ca_domain_free(d);
}

static const struct ca_backend xen_backend = {.at = xen_at,
                                              .ready = xen_ready,
                                              .glance = xen_glance,
                                              .at_write = xen_at_write,
                                              .next = xen_next,
                                              .begin = xen_begin,
                                              .end = xen_end,
                                              .revoke = xen_revoke,
                                              .close = xen_close,
                                              .invalidate = xen_invalidate};

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
    struct ca_domain *d = NULL;
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
    d = ca_domain_new((uint32_t)limit, last + 1);
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
    if (d->file.ledger != NULL) mem->patches = &d->file.ledger->live;
    mem->writable = (flags & CA_OPEN_WRITE) != 0;
    mem->end = (last + 1) * CA_PAGE;
    result = d->pages == 0 && d->ended ? ca_fail(CA_E_OPEN, "there is no domain %u", domid) : ca_mem_register(mem);
    if (result > 0) return result;
failed:
    xen->foreign_close(foreign);
    ca_domain_free(d);
    free(mem);
    return result;
}

int32_t ca_xen_probe(int32_t handle) {
    struct ca_mem *mem;
    int32_t result = ca_enter(handle, CA_KEEP, &mem);
    if (result != CA_OK) return result;
    if (mem->ops == &xen_backend) {
        struct ca_domain *d = mem->state;
        uint64_t frame = d->probe == UINT64_MAX ? 0 : d->probe;
        int error;
        uint8_t *base = ca_domain_map(d, &frame, 1, &error);
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
        const struct ca_domain *d = mem->state;
        const uint64_t words[2] = {d->maps, d->pages};
        memcpy(counts, words, sizeof words);
    } else {
        result = ca_fail(CA_E_ARGUMENT, "the handle is of no Xen domain");
    }
    ca_leave(mem);
    return result;
}
