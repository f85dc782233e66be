#define _GNU_SOURCE
#include "xen_runs.h"

#include <errno.h>
#include <stdlib.h>

/* 2 TiB of guest-physical memory: the part of it that scans know the holes of. */
#define MAX_RUNS (1ull << 20)
#define NONE UINT32_MAX
/* Of the 65,530 mappings that Linux gives a process by default, one for each run of 64 GiB leaves so many. */
#define MAX_PIECES 8192u
/* Most runs are mapped in part: so many times as many as whole ones are known, up to what is looked through in no time. */
#define SPREAD 4u
#define MAX_SPREAD 4096u

static uint32_t *bucket_of(const struct ca_domain *d, uint64_t number) {
    return &d->bucket[(uint32_t)((number * 0x9e3779b97f4a7c15ull) >> 32) & (d->buckets - 1)];
}

uint8_t *ca_domain_map(struct ca_domain *d, const uint64_t *frames, uint32_t count, int *errors) {
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

static void unmap(struct ca_domain *d, struct ca_run *run) {
    for (uint32_t part = 0; part < PARTS;) {
        uint32_t parts = 1;
        if (run->parts[part] != NULL) {
            while (part + parts < PARTS && run->parts[part + parts] != NULL && (run->begins >> (part + parts) & 1) == 0) parts++;
            d->xen->foreign_unmap(d->foreign, run->parts[part], parts * PART_PAGES);
            d->held -= parts * PART_PAGES;
            d->pieces--;
        }
        part += parts;
    }
    d->pages -= run->pages;
    *run = (struct ca_run){.number = run->number, .looked = run->looked, .chain = run->chain};
}

static void forget(struct ca_domain *d, uint32_t slot) {
    uint32_t *link = bucket_of(d, d->runs[slot].number);
    while (*link != slot) link = &d->runs[*link].chain;
    *link = d->runs[slot].chain;
    if (d->runs[slot].pages == 0) d->empty--;
    unmap(d, &d->runs[slot]);
    d->runs[slot].number = CA_NO_RUN;
    d->runs[slot].chain = d->free;
    d->free = slot;
}

void ca_runs_forget(struct ca_domain *d) {
    for (uint32_t slot = 0; slot < d->limit; slot++)
        if (d->runs[slot].number != CA_NO_RUN) forget(d, slot);
}

/* A look at each costs less than a use would if it kept them in order, and far less than the mapping. */
static uint32_t oldest(const struct ca_domain *d, bool empty) {
    uint32_t found = NONE;
    for (uint32_t slot = 0; slot < d->limit; slot++) {
        if (found != NONE && d->used[slot] >= d->used[found]) continue;
        if (d->runs[slot].number != CA_NO_RUN && (d->runs[slot].pages == 0) == empty) found = slot;
    }
    return found;
}

/* Of an address space that is mostly holes, those without a page must not drive out those with pages. */
static void forget_one(struct ca_domain *d) {
    bool empty = d->empty > d->limit / 8;
    uint32_t slot = oldest(d, empty);
    forget(d, slot != NONE ? slot : oldest(d, !empty));
}

/* Room for more pages of this run, by the others'. */
static void make_room(struct ca_domain *d, const struct ca_run *run, uint32_t pages) {
    while (d->held + pages > d->most) {
        uint32_t slot = oldest(d, false);
        if (slot == NONE || &d->runs[slot] == run) return;
        forget(d, slot);
    }
}

/* Maps parts that are not. */
static void fill(struct ca_domain *d, struct ca_run *run, uint32_t first, uint32_t parts) {
    const uint32_t start = first * PART_PAGES, count = parts * PART_PAGES;
    const uint64_t frame = (run->number << 9) + start;
    uint64_t frames[RUN_PAGES] = {frame};
    int errors[RUN_PAGES];
    for (uint32_t i = 1; i < count; i++) frames[i] = frame + i;
    run->looked = d->call;
    d->ahead = frame + count;
    make_room(d, run, count);
    uint8_t *base = ca_domain_map(d, frames, count, errors);
    uint32_t there = 0;
    for (uint32_t i = 0; i < count && base != NULL; i++) {
        if (errors[i] != 0) continue;
        run->there[(start + i) / 64] |= 1ull << ((start + i) % 64);
        there++;
    }
    for (uint32_t i = 0; i < parts; i++) {
        run->asked |= 1u << (first + i);
        if (there > 0) run->parts[first + i] = base + i * (uint64_t)PART_PAGES * CA_PAGE;
    }
    if (there == 0) {
        if (base != NULL) d->xen->foreign_unmap(d->foreign, base, count);
        return;
    }
    run->begins |= 1u << first;
    if (run->pages == 0) d->empty--;
    run->pages = (uint16_t)(run->pages + there);
    run->whole = parts == PARTS && there == RUN_PAGES;
    d->pages += there;
    d->held += count;
    d->pieces++;
}

bool ca_run_ask(struct ca_domain *d, struct ca_run *run, uint32_t page, uint64_t bytes) {
    uint32_t part = page / PART_PAGES, parts = 1;
    if ((run->asked >> part & 1) != 0) return ca_run_has(run, page);
    /* Who goes on where the last part ended gets twice as much each time; who reads more than a part, all there is. */
    bool on = (run->number << 9) + part * PART_PAGES == d->ahead;
    d->window = bytes > PART_PAGES * CA_PAGE || (on && d->window >= PARTS) ? PARTS : on ? 2 * d->window : 1;
    while (parts < d->window && part + parts < PARTS && (run->asked >> (part + parts) & 1) == 0) parts++;
    if (2 * (parts + (uint32_t)__builtin_popcount(run->asked)) > PARTS || d->pieces >= MAX_PIECES) {
        if (run->pages > 0) d->empty++;
        unmap(d, run);
        part = 0;
        parts = PARTS;
    }
    fill(d, run, part, parts);
    return ca_run_has(run, page);
}

struct ca_run *ca_run_search(struct ca_domain *d, uint64_t number, uint64_t use) {
    uint32_t slot = *bucket_of(d, number);
    while (slot != NONE && d->runs[slot].number != number) slot = d->runs[slot].chain;
    if (slot == NONE) return NULL;
    d->recent[number % CA_RECENT] = slot;
    d->used[slot] = use;
    return &d->runs[slot];
}

struct ca_run *ca_run_find(struct ca_domain *d, uint64_t number) {
    const uint64_t use = ++d->uses;
    struct ca_run *there = ca_run_ready(d, number, use);
    if (CA_LIKELY(there != NULL)) return there;
    if (d->free == NONE) forget_one(d);
    uint32_t slot = d->free;
    d->free = d->runs[slot].chain;
    d->runs[slot].number = number;
    d->empty++;
    uint32_t *bucket = bucket_of(d, number);
    d->runs[slot].chain = *bucket;
    *bucket = slot;
    d->used[slot] = use;
    return &d->runs[slot];
}

bool ca_run_come(struct ca_domain *d, struct ca_run *run, uint32_t page) {
    if (run->looked == d->call || d->ended) return false;
    run->looked = d->call;
    uint64_t frame = (run->number << 9) + page;
    int error;
    uint8_t *base = ca_domain_map(d, &frame, 1, &error);
    if (base == NULL) return false;
    d->xen->foreign_unmap(d->foreign, base, 1);
    if (error != 0) return false;
    if (run->pages > 0) d->empty++;
    unmap(d, run);
    fill(d, run, page / PART_PAGES, 1);
    return ca_run_has(run, page);
}

struct ca_domain *ca_domain_new(uint32_t whole, uint64_t frames) {
    const uint32_t spread = whole < MAX_SPREAD / SPREAD ? whole * SPREAD : MAX_SPREAD, limit = whole > spread ? whole : spread;
    struct ca_domain *d = calloc(1, sizeof *d + limit * sizeof *d->runs);
    if (d == NULL) return NULL;
    d->limit = limit;
    d->most = (uint64_t)whole * RUN_PAGES;
    d->file.fd = -1;
    for (d->buckets = 16; d->buckets < limit; d->buckets *= 2) continue;
    d->count = (frames + RUN_PAGES - 1) / RUN_PAGES;
    if (d->count > MAX_RUNS) d->count = MAX_RUNS;
    d->bucket = malloc(d->buckets * sizeof *d->bucket);
    d->ram = calloc((d->count + 63) / 64, 8);
    d->used = calloc(limit, sizeof *d->used);
    if (d->bucket == NULL || d->ram == NULL || d->used == NULL) {
        ca_domain_free(d);
        return NULL;
    }
    memset(d->bucket, 0xff, d->buckets * sizeof *d->bucket);
    d->probe = d->ahead = UINT64_MAX;
    for (uint32_t i = 0; i < limit; i++) {
        d->runs[i].number = CA_NO_RUN;
        d->runs[i].chain = i + 1 < limit ? i + 1 : NONE;
    }
    d->free = 0;
    return d;
}

void ca_domain_free(struct ca_domain *d) {
    if (d == NULL) return;
    ca_ledger_close(&d->file);
    free(d->used);
    free(d->ram);
    free(d->bucket);
    free(d);
}
