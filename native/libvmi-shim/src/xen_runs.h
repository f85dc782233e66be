/*
 * A domain's memory as runs of 2 MiB, mapped by one call for 512 pages, as a call costs as much as dozens of pages. A
 * bounded number is kept; the one that was not used for longest goes first.
 */
#ifndef CA_XEN_RUNS_H
#define CA_XEN_RUNS_H

#include "ledger.h"
#include "xen.h"

#define RUN_SHIFT 21u
#define RUN_PAGES 512u
#define RUN_BYTES (1ull << RUN_SHIFT)
#define CA_RECENT 256u
#define CA_NO_RUN UINT64_MAX

struct ca_run {
    uint64_t number; /* guest-physical address >> 21; CA_NO_RUN while the slot is free */
    uint8_t *base;   /* NULL: no page of it is there */
    uint64_t there[RUN_PAGES / 64];
    bool whole;
    uint32_t looked; /* the call in which pages that were missing were last asked for */
    uint32_t chain;  /* next in the bucket, or in the list of free ones */
};

struct ca_domain {
    uint32_t domid;
    int prot;
    bool ended;  /* Xen no longer knows the domain */
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
    uint32_t limit, buckets, free, empty; /* empty: runs that are kept and have no page */
    uint32_t *bucket;
    uint32_t recent[CA_RECENT]; /* by the end of its number: the slot where a run was found last */
    uint64_t uses;
    uint64_t *used; /* by slot: the last of `uses` that was of it */
    struct ca_run runs[];
};

/* A domain without runs, of `frames` page frames; at most `limit` runs are kept. NULL without memory. */
struct ca_domain *ca_domain_new(uint32_t limit, uint64_t frames);
void ca_domain_free(struct ca_domain *d);

/* Maps `count` frames; errors[i] is 0 or an errno. NULL if none could be mapped. */
uint8_t *ca_domain_map(struct ca_domain *d, const uint64_t *frames, uint32_t count, int *errors);

/* The run, mapped now if it was not; valid until the next is asked for. */
struct ca_run *ca_run_find(struct ca_domain *d, uint64_t number);
/* The run if it is mapped, else NULL: first where it was found last, then by its number. `use` is one of d->uses. */
struct ca_run *ca_run_search(struct ca_domain *d, uint64_t number, uint64_t use);
static inline struct ca_run *ca_run_ready(struct ca_domain *d, uint64_t number, uint64_t use) {
    const uint32_t slot = d->recent[number % CA_RECENT];
    if (CA_UNLIKELY(d->runs[slot].number != number)) return ca_run_search(d, number, use);
    d->used[slot] = use;
    return &d->runs[slot];
}
static inline bool ca_run_has(const struct ca_run *run, uint32_t page) {
    return (run->there[page / 64] >> (page % 64) & 1) != 0;
}
/* A page that was missing may have come since: asks once a call, and for this page first. */
bool ca_run_come(struct ca_domain *d, struct ca_run *run, uint32_t page);
void ca_runs_forget(struct ca_domain *d);

#endif
