/*
 * Fuzzes what a hostile guest controls: the bytes of its RAM. The input patches a guest that works (test/guest.c), so
 * that most inputs get far; then every verb runs over it in the smallest slices. Besides what the sanitizers see, every
 * verb must end by itself, keep to its limits, and agree with itself however it is cut.
 */
#include <stdlib.h>
#include <string.h>

#include "cloudapp.h"
#include "guest.h"
#include "walk.h"

#define MUST(condition)            \
    do {                           \
        if (!(condition)) abort(); \
    } while (0)

struct cursor {
    _Alignas(8) uint8_t bytes[CA_CURSOR_SIZE];
};

static uint8_t *ram;
static int32_t mem;

/* A patch: which word, how its value is made, and the value. */
struct patch {
    uint16_t word;
    uint8_t kind;
    uint8_t small;
    uint64_t value;
} __attribute__((packed));

static void patch(const struct patch *p) {
    uint64_t at = (uint64_t)(p->word % (GUEST_SIZE / 8)) * 8, value = p->value;
    switch (p->kind % 5) {
    case 0: break;
    /* A page-table entry to some page of RAM. */
    case 1: value = (value % (GUEST_PAGES + 2)) << 12 | p->small | (p->value >> 63) << 63; break;
    /* A pointer into RAM, a tagged one, and one to a link. */
    case 2: value = VIRT(value % (GUEST_SIZE + 64)); break;
    case 3: value = VIRT((value % GUEST_SIZE) & ~3ull) | 2; break;
    case 4: value = VIRT(AT_ELEMENTS + (value % ELEMENTS) * 64 + 16); break;
    }
    guest_put(ram, at, value);
}

struct plan {
    struct ca_plan head;
    struct ca_column column[3];
};

static uint64_t walk(uint64_t kind, uint64_t space, uint64_t at, uint32_t budget, uint32_t rows, uint64_t *sum) {
    struct plan plan = {.head = {kind, space, VIRT(at), 16, 200, 24, 8, 1, XA_SHIFT, XA_SLOTS, 16, 3}};
    plan.column[0] = (struct ca_column){8, 1, {0}};
    plan.column[1] = (struct ca_column){16, 3, {16, 8, (uint64_t)-8}};
    plan.column[2] = (struct ca_column){1, 2, {24, 4}};
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS], total = 0;
    uint32_t size = rows * (8 + 8 + 16 + 1 + 3);
    uint64_t *out = malloc(size);
    int32_t code;
    unsigned calls = 0;
    do {
        code = ca_walk(mem, 0, budget, &plan, sizeof plan, out, size, rows, &cursor, status);
        MUST(code == CA_OK || code == CA_MORE);
        MUST(status[0] <= rows);
        for (uint64_t i = 0; i < status[0]; i++) *sum = *sum * 31 + out[i];
        total += status[0];
        MUST(total <= 200 && ++calls < 100000);
    } while (code == CA_MORE);
    MUST(status[1] <= CA_END_FAULT);
    MUST((status[1] == CA_END_FAULT) == (status[2] != CA_F_NONE) || kind == CA_WALK_XARRAY);
    free(out);
    return total;
}

static void walks(uint64_t space) {
    static const uint64_t heads[] = {0, AT_LIST, AT_HLIST, AT_HASH, AT_RBTREE, AT_XARRAY, AT_POINTERS};
    for (uint64_t kind = CA_WALK_LIST; kind <= CA_WALK_ARRAY; kind++) {
        uint64_t whole = 0, cut = 0;
        uint64_t rows = walk(kind, space, heads[kind], 1000000, 256, &whole);
        MUST(walk(kind, space, heads[kind], 0, 3, &cut) == rows && cut == whole);
    }
}

static void read_some(uint64_t space, const uint8_t *data, size_t size) {
    enum { COUNT = 40 };
    uint64_t at[COUNT], status[CA_STATUS_WORDS], requests[2][5] = {{space, 0, COUNT, 8, 0}, {space, 0, 4, 9000, COUNT * 8}};
    uint32_t out_size = COUNT * 8 + 4 * 9000, total = 0;
    uint8_t *out = malloc(out_size), *faults = malloc(2 * 32);
    struct cursor cursor = {{0}};
    int32_t code;
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t value = i * 0x1003;
        memcpy(&value, data, size < 8 ? size : 8);
        at[i] = i % 4 == 3 ? value * (i + 1) : VIRT(value * i % GUEST_SIZE);
    }
    do {
        code = ca_read(mem, 0, 0, requests, 2, at, COUNT, out, out_size, faults, 2, &cursor, status);
        MUST(code == CA_OK || code == CA_MORE);
        total += (uint32_t)status[0];
        MUST(status[0] <= 2 && total <= COUNT + 4);
    } while (code == CA_MORE);
    free(out);
    free(faults);
}

static void scans(uint64_t space) {
    struct {
        uint32_t length, zero;
        uint8_t bytes[256];
    } patterns[2] = {{7, 0, "needle-"}, {1, 0, "\xff"}};
    uint64_t status[CA_STATUS_WORDS], last = VA_LARGE + (1ull << 22), total = 0, before = 0;
    struct cursor cursor = {{0}};
    uint64_t *runs = malloc(4 * 25), *matches = malloc(16 * 16);
    uint8_t digests[4 * 32], present[4];
    int32_t code;
    unsigned calls = 0;
    do {
        code = ca_pages(mem, 0, 0, space, VIRT(0), last, 0, 30, runs, 4, &cursor, status);
        MUST(code >= 0 && status[0] <= 4 && ++calls < 200000);
        const uint64_t *sizes = runs + 2 * status[0];
        for (uint64_t i = 0; i < status[0]; i++) {
            MUST(runs[i] >= before && sizes[i] > 0 && runs[i] - VIRT(0) + sizes[i] <= last - VIRT(0) + 4096);
            before = runs[i] + sizes[i];
        }
        total += status[0];
    } while (code == CA_MORE);
    MUST(total <= 30);
    for (uint32_t align = 1; align <= 4096; align *= 64) {
        memset(&cursor, 0, sizeof cursor);
        total = before = 0;
        last = VIRT(24 * 4096 + 100);
        do {
            code = ca_search(mem, 0, 0, space, VIRT(19 * 4096), last, patterns, 2, align, 0, 50, matches, 16, &cursor, status);
            MUST(code >= 0 && status[0] <= 16 && ++calls < 400000);
            for (uint64_t i = 0; i < status[0]; i++) {
                MUST(matches[2 * i] >= before && matches[2 * i] <= last && matches[2 * i] % align == 0);
                MUST(matches[2 * i + 1] < 2);
                before = matches[2 * i];
            }
            total += status[0];
        } while (code == CA_MORE);
        MUST(total <= 50);
    }
    memset(&cursor, 0, sizeof cursor);
    do code = ca_digest(mem, 0, 0, space, VIRT(0x3000), 4, digests, present, &cursor, status);
    while (code == CA_MORE);
    MUST(code == CA_OK || code == CA_E_CRYPTO);
    free(runs);
    free(matches);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (ram == NULL) mem = guest_open(guest_new(&ram), 0);
    guest_fill(ram);
    const struct patch *patches = (const struct patch *)(const void *)data;
    for (size_t i = 0; i < size / sizeof *patches; i++) patch(&patches[i]);
    uint64_t spaces[] = {SPACE4, SPACE5};
    for (unsigned i = 0; i < 2; i++) {
        walks(spaces[i]);
        read_some(spaces[i], data, size);
        scans(spaces[i]);
    }
    return 0;
}
