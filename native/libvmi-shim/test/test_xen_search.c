/* Searches of a Xen domain: through holes, and of places far apart. */
#include "xen_domain.h"

/* Finds the first word of each page that there is, through the holes. */
static void searches(void) {
    int32_t mem = ca_xen_open(7, 0, RUN);
    struct {
        uint32_t length, zero;
        uint8_t bytes[256];
    } pattern = {8, 0, {0}};
    const unsigned pages[] = {4 * 512 + 511, 5 * 512, 9 * 512, 10 * 512 + 2, 10 * 512 + 10, 10 * 512 + 11, 20 * 512 + 99, FRAMES - 1};
    for (unsigned i = 0; i < sizeof pages / sizeof *pages; i++) {
        uint64_t at = pages[i] * (uint64_t)PAGE, word = word_of(at), rows[32], status[CA_STATUS_WORDS], matches = 0;
        memcpy(pattern.bytes, &word, 8);
        struct cursor cursor = {{0}};
        int32_t result;
        do {
            result = ca_search(mem, 0, 1000, 0, 0, UINT64_MAX, &pattern, 1, 8, 0, 2, rows, 16, &cursor, status);
            CHECK(result >= 0);
            matches += status[0];
            if (status[0] > 0) CHECK_EQUAL(rows[0], at);
        } while (result == CA_MORE);
        CHECK_EQUAL(matches, domain.missing[at / PAGE] ? 0 : 1);
    }
    ca_mem_close(mem);
    CHECK_EQUAL(domain.live, 0);
}

/* Places far apart: one call for all of them, and one for the run of what is found. */
static void searches_sparsely(void) {
    int32_t mem = ca_xen_open(7, 0, 0);
    uint64_t at = 15 * RUN + 0x12340, word = word_of(at), rows[32], status[CA_STATUS_WORDS];
    struct {
        uint32_t length, zero;
        uint8_t bytes[256];
    } pattern = {8, 0, {0}};
    memcpy(pattern.bytes, &word, 8);
    struct cursor cursor = {{0}};
    unsigned before = domain.calls;
    int32_t result = ca_search(mem, 0, UINT32_MAX, 0, 0, UINT64_MAX, &pattern, 1, RUN, 0x12340, 2, rows, 16, &cursor, status);
    CHECK_EQUAL(result, CA_OK);
    CHECK_EQUAL(status[0], 1);
    CHECK_EQUAL(rows[0], at);
    CHECK_EQUAL(domain.calls - before, 2);
    /* Nothing behind the last place of a range is looked at, nor a place before its first. */
    const uint64_t ranges[][3] = {{at + 8, 16 * RUN, 0}, {at + 1, UINT64_MAX, 0}, {at, at + 7, 1}, {14 * RUN, at + 6, 0}};
    for (unsigned i = 0; i < sizeof ranges / sizeof *ranges; i++) {
        const uint64_t *range = ranges[i];
        cursor = (struct cursor){{0}};
        result = ca_search(mem, 0, UINT32_MAX, 0, range[0], range[1], &pattern, 1, RUN, 0x12340, 2, rows, 16, &cursor, status);
        CHECK_EQUAL(result, CA_OK);
        CHECK_EQUAL(status[0], range[2]);
    }
    /* Each place there is, some rows at a time; a word that begins alike is none. */
    memset(pattern.bytes, 0, 8);
    pattern.length = 1;
    uint64_t all = 0, wanted = 0;
    for (uint64_t place = 0x12340; place < (uint64_t)FRAMES * PAGE; place += RUN) {
        word = word_of(place);
        wanted += !domain.missing[place / PAGE] && (uint8_t)word == (uint8_t)word_of(0x12340);
    }
    pattern.bytes[0] = (uint8_t)word_of(0x12340);
    cursor = (struct cursor){{0}};
    do {
        result = ca_search(mem, 0, 1, 0, 0, UINT64_MAX, &pattern, 1, RUN, 0x12340, 64, rows, 16, &cursor, status);
        CHECK(result >= 0);
        all += status[0];
    } while (result == CA_MORE);
    CHECK_EQUAL(all, wanted);
    CHECK(wanted >= 17); /* more than there are rows */
    ca_mem_close(mem);
    CHECK_EQUAL(domain.live, 0);
}

void test_xen_search(void) {
    searches();
    searches_sparsely();
}
