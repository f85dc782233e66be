/* A domain of our own in place of Xen's: a memory file whose frames can come, go and be missing. */
#ifndef CA_TEST_XEN_DOMAIN_H
#define CA_TEST_XEN_DOMAIN_H

#include "test.h"
#include "xen.h"

#define FRAMES (24u * 512u)
#define PAGE 4096u
#define RUN (2u << 20)

struct xen_domain {
    int file;
    bool missing[FRAMES], gone, unmappable, blind, mute;
    /* `live` are mappings, `held` their pages, missing or not; `most` the most of these, `calls` those that mapped. */
    unsigned live, held, most, calls;
    int pauses;
};
extern struct xen_domain domain;
extern const struct ca_xen domain_xen;

/* What each word of its memory is. */
uint64_t word_of(uint64_t address);
/* Makes it, with holes. */
void domain_fill(void);

/* test_xen_search.c */
void test_xen_search(void);

#endif
