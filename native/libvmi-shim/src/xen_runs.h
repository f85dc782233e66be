/*
 * A domain's memory as runs of 2 MiB. What is mapped is bounded, and how many runs are known; the one that was not used for
 * longest goes first.
 * A call that maps costs as much as dozens of pages, so a run is mapped in parts of 16 pages and more: more for who goes on
 * where the last part ended, or wants much at once; and all of it by one call once half of it would be.
 */
#ifndef CA_XEN_RUNS_H
#define CA_XEN_RUNS_H

#include "ledger.h"
#include "xen.h"

#define RUN_SHIFT 21u
#define RUN_PAGES 512u
#define RUN_BYTES (1ull << RUN_SHIFT)
#define PART_PAGES 16u
#define PARTS (RUN_PAGES / PART_PAGES)
#define CA_RECENT 256u
#define CA_NO_RUN UINT64_MAX

struct ca_run {
    uint64_t number;        /* guest-physical address >> 21; CA_NO_RUN while the slot is free */
    bool whole;             /* in one piece, and each page is there */
    uint16_t pages;         /* how many are there */
    uint32_t asked, begins; /* one bit a part: it was asked for; a piece that was mapped by one call begins with it */
    uint32_t looked;        /* the call in which pages were last asked for */
    uint32_t chain;         /* next in the bucket, or in the list of free ones */
    uint8_t *parts[PARTS];  /* NULL: not asked for, or no page of it is there */
    uint64_t there[RUN_PAGES / 64];
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
    uint64_t maps, pages, pieces;
    uint64_t held, most; /* pages in all pieces, missing or not, and how many they may be */
    uint64_t ahead;  /* the frame behind what was mapped last */
    uint32_t window; /* parts that were mapped then */
    uint64_t count; /* runs from 0 to the end of the memory */
    uint64_t *ram;  /* one bit a run: it holds RAM, as far as its first and last page tell */
    uint32_t limit, buckets, free, empty; /* empty: runs that are kept and have no page */
    uint32_t *bucket;
    uint32_t recent[CA_RECENT]; /* by the end of its number: the slot where a run was found last */
    uint64_t uses;
    uint64_t *used; /* by slot: the last of `uses` that was of it */
    struct ca_run runs[];
};

/* A domain without runs, of `frames` page frames, of which as many as `whole` runs have may be mapped. NULL without memory. */
struct ca_domain *ca_domain_new(uint32_t whole, uint64_t frames);
void ca_domain_free(struct ca_domain *d);

/* Maps `count` frames; errors[i] is 0 or an errno. NULL if none could be mapped. */
uint8_t *ca_domain_map(struct ca_domain *d, const uint64_t *frames, uint32_t count, int *errors);

/* The run, kept from now on if it was not; valid until the next is asked for. */
struct ca_run *ca_run_find(struct ca_domain *d, uint64_t number);
/* Maps the page's part if it never was, and more for who wants `bytes` from there. False if the page is not there. */
bool ca_run_ask(struct ca_domain *d, struct ca_run *run, uint32_t page, uint64_t bytes);
/* The run if it is kept, else NULL: first where it was found last, then by its number. `use` is one of d->uses. */
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
/* Where a page of the run lies that is there. */
static inline uint8_t *ca_run_page(const struct ca_run *run, uint32_t page) {
    return run->parts[page / PART_PAGES] + page % PART_PAGES * (uint64_t)CA_PAGE;
}
/* A page that was missing may have come since: asks once a call, and for this page first. */
bool ca_run_come(struct ca_domain *d, struct ca_run *run, uint32_t page);
void ca_runs_forget(struct ca_domain *d);

#endif
