#define _GNU_SOURCE
#include "xen_runs.h"

#include <errno.h>
#include <stdlib.h>

/* 2 TiB of guest-physical memory: the part of it that scans know the holes of. */
#define MAX_RUNS (1ull << 20)
#define NONE UINT32_MAX

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
    if (run->base == NULL) {
        d->empty--;
        return;
    }
    d->xen->foreign_unmap(d->foreign, run->base, RUN_PAGES);
    run->base = NULL;
    for (uint32_t i = 0; i < RUN_PAGES / 64; i++) d->pages -= (uint64_t)__builtin_popcountll(run->there[i]);
}

static void forget(struct ca_domain *d, uint32_t slot) {
    uint32_t *link = bucket_of(d, d->runs[slot].number);
    while (*link != slot) link = &d->runs[*link].chain;
    *link = d->runs[slot].chain;
    unmap(d, &d->runs[slot]);
    d->runs[slot].number = CA_NO_RUN;
    d->runs[slot].chain = d->free;
    d->free = slot;
}

void ca_runs_forget(struct ca_domain *d) {
    for (uint32_t slot = 0; slot < d->limit; slot++)
        if (d->runs[slot].number != CA_NO_RUN) forget(d, slot);
}

/*
 * All are in use. A look at each costs less than a use would if it kept them in order, and far less than the mapping.
 * Of an address space that is mostly holes, those without a page must not drive out those with pages.
 */
static uint32_t oldest(const struct ca_domain *d) {
    bool empty = d->empty > d->limit / 8;
    uint32_t found = NONE;
    for (uint32_t slot = 0; slot < d->limit; slot++)
        if ((!empty || d->runs[slot].base == NULL) && (found == NONE || d->used[slot] < d->used[found])) found = slot;
    return found;
}

static void fill(struct ca_domain *d, struct ca_run *run) {
    uint64_t frames[RUN_PAGES];
    int errors[RUN_PAGES];
    for (uint32_t i = 0; i < RUN_PAGES; i++) frames[i] = (run->number << 9) + i;
    memset(run->there, 0, sizeof run->there);
    run->looked = d->call;
    uint8_t *base = ca_domain_map(d, frames, RUN_PAGES, errors);
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
    if (base == NULL) d->empty++;
    run->whole = there == RUN_PAGES;
    d->pages += there;
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
    if (d->free == NONE) forget(d, oldest(d));
    uint32_t slot = d->free;
    d->free = d->runs[slot].chain;
    d->runs[slot].number = number;
    d->runs[slot].base = NULL;
    fill(d, &d->runs[slot]);
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
    unmap(d, run);
    fill(d, run);
    return ca_run_has(run, page);
}

struct ca_domain *ca_domain_new(uint32_t limit, uint64_t frames) {
    struct ca_domain *d = calloc(1, sizeof *d + limit * sizeof *d->runs);
    if (d == NULL) return NULL;
    d->limit = limit;
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
    d->probe = UINT64_MAX;
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
