#include <unistd.h>

#include "test.h"
#include "walk.h"

#define ROWS 7u
#define MOST 64u

struct plan {
    struct ca_plan head;
    struct ca_column column[2];
};

struct result {
    uint64_t rows, end, reason, address, period, calls;
    uint64_t addresses[MOST], values[MOST];
    uint8_t cells[MOST * 2];
};

static uint8_t *ram;
static int32_t mem;

static struct plan plan_of(uint64_t kind, uint64_t head) {
    struct plan plan = {.head = {kind, SPACE4, VIRT(head), 16, 60, 0, 8, 0, XA_SHIFT, XA_SLOTS, 16, 2}};
    plan.column[0] = (struct ca_column){8, 1, {0}};
    plan.column[1] = (struct ca_column){3, 2, {16, (uint64_t)-16}};
    return plan;
}

/* In slices and chunks as small as they can be. */
static struct result walk(struct plan plan) {
    struct result all = {0};
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS];
    uint32_t size = ROWS * (8 + 8 + 3 + 2);
    int32_t code;
    do {
        uint64_t *out = malloc(size);
        code = ca_walk(mem, 0, 0, &plan, sizeof plan, out, size, ROWS, &cursor, status);
        CHECK(code >= 0 && status[0] <= ROWS && all.rows + status[0] <= MOST);
        memcpy(all.addresses + all.rows, out, status[0] * 8);
        memcpy(all.values + all.rows, out + status[0], status[0] * 8);
        memcpy(all.cells + all.rows * 2, (uint8_t *)out + status[0] * 19, status[0] * 2);
        all.rows += status[0];
        free(out);
        CHECK(++all.calls < 10000);
    } while (code == CA_MORE);
    all.end = status[1];
    all.reason = status[2];
    all.address = status[4];
    all.period = status[6];
    return all;
}

static void kinds(void) {
    struct result got = walk(plan_of(CA_WALK_LIST, AT_LIST));
    CHECK_EQUAL(got.rows, 8);
    CHECK_EQUAL(got.end, CA_END_COMPLETE);
    for (unsigned i = 0; i < 8; i++) CHECK_EQUAL(got.values[i], 100 + i);
    got = walk(plan_of(CA_WALK_HLIST, AT_HLIST));
    CHECK_EQUAL(got.rows, 4);
    CHECK_EQUAL(got.values[3], 111);
    struct plan plan = plan_of(CA_WALK_HASH, AT_HASH);
    plan.head.count = HASH_BUCKETS;
    got = walk(plan);
    CHECK_EQUAL(got.rows, 6);
    CHECK_EQUAL(got.values[5], 117);
    got = walk(plan_of(CA_WALK_RBTREE, AT_RBTREE));
    CHECK_EQUAL(got.rows, 11);
    for (unsigned i = 0; i < 11; i++) CHECK_EQUAL(got.values[i], 118 + i);
    got = walk(plan_of(CA_WALK_XARRAY, AT_XARRAY));
    CHECK_EQUAL(got.rows, 18);
    for (unsigned i = 0; i < 18; i++) CHECK_EQUAL(got.values[i], 100 + i);
    plan = plan_of(CA_WALK_ARRAY, AT_POINTERS);
    plan.head.count = ELEMENTS;
    plan.head.pointers = 1;
    got = walk(plan);
    CHECK_EQUAL(got.rows, ELEMENTS - ELEMENTS / 5);
    CHECK_EQUAL(got.values[4], 105);
    CHECK_EQUAL(got.end, CA_END_COMPLETE);
    plan.head.limit = 3;
    CHECK_EQUAL(walk(plan).end, CA_END_LIMIT);
}

static void lies(void) {
    /* Element 7 links back to element 3. */
    guest_put(ram, AT_ELEMENTS + 7 * 64 + 16, VIRT(AT_ELEMENTS + 3 * 64 + 16));
    struct result got = walk(plan_of(CA_WALK_LIST, AT_LIST));
    CHECK_EQUAL(got.end, CA_END_CYCLE);
    CHECK_EQUAL(got.period, 5);
    guest_put(ram, AT_ELEMENTS + 7 * 64 + 16, 0xdead000000000100ull);
    got = walk(plan_of(CA_WALK_LIST, AT_LIST));
    CHECK_EQUAL(got.end, CA_END_FAULT);
    CHECK_EQUAL(got.rows, 8);
    CHECK_EQUAL(got.reason, CA_F_NON_CANONICAL);
    CHECK_EQUAL(got.address, 0xdead000000000100ull);
    guest_fill(ram);

    uint64_t root;
    memcpy(&root, ram + AT_RBTREE, 8);
    for (unsigned child = 8; child <= 16; child += 8) {
        guest_put(ram, root - VA_DIRECT + child, root);
        got = walk(plan_of(CA_WALK_RBTREE, AT_RBTREE));
        CHECK_EQUAL(got.end, CA_END_CYCLE);
        guest_fill(ram);
    }

    /* A node below its own kind: the shift does not fall. */
    ram[AT_NODES + 256 + XA_SHIFT] = 4;
    CHECK_EQUAL(walk(plan_of(CA_WALK_XARRAY, AT_XARRAY)).end, CA_END_CYCLE);
    ram[AT_NODES + XA_SHIFT] = 61;
    CHECK_EQUAL(walk(plan_of(CA_WALK_XARRAY, AT_XARRAY)).end, CA_END_CYCLE);
    guest_fill(ram);
    /* Nodes that share what is below them: 16^9 paths without an element. */
    for (unsigned level = 0; level < 9; level++) {
        uint64_t node = 0x30000 + level * 256;
        ram[node + XA_SHIFT] = (uint8_t)(36 - 4 * level);
        for (unsigned i = 0; i < 16 && level < 8; i++) guest_put(ram, node + XA_SLOTS + i * 8, VIRT(node + 256) | 2);
    }
    guest_put(ram, AT_XARRAY, VIRT(0x30000) | 2);
    got = walk(plan_of(CA_WALK_XARRAY, AT_XARRAY));
    CHECK_EQUAL(got.end, CA_END_LIMIT);
    CHECK_EQUAL(got.rows, 0);
    guest_fill(ram);
    /* A node in the last level. */
    guest_put(ram, AT_NODES + 256 + XA_SLOTS, VIRT(AT_NODES + 256) | 2);
    CHECK_EQUAL(walk(plan_of(CA_WALK_XARRAY, AT_XARRAY)).end, CA_END_CYCLE);
    guest_fill(ram);
}

/* Fields of an element in pages that lie apart, and across them: each is what a read of it gives. */
static void pages_apart(void) {
    uint64_t table = ROOT4;
    const uint64_t at = VIRT(40 * 4096 + 4096 - 16), swapped[] = {40, 50, 45, 0};
    for (unsigned shift = 39; shift > 12; shift -= 9) memcpy(&table, ram + (table & CA_SPACE_ROOT) + (at >> shift & 511) * 8, 8);
    for (unsigned i = 0; i < 4; i++) {
        uint64_t pte = (table & CA_SPACE_ROOT) + (((at >> 12) + i) & 511) * 8;
        guest_put(ram, pte, i == 3 ? 0 : swapped[i] * 4096 | ENTRY_PRESENT);
        for (unsigned k = 0; i < 3 && k < 4096; k++) ram[swapped[i] * 4096 + k] = (uint8_t)(k * 7 + swapped[i]);
    }
    const uint64_t offsets[] = {0, 16, 8, 14, 16 + 4096, 4, 16 + 4090, 20, 16 + 4096 + 4090}, sizes[] = {8, 4, 3, 8, 5, 4, 20, 8, 12};
    struct {
        struct ca_plan head;
        struct ca_column column[9];
    } plan = {.head = {CA_WALK_ARRAY, SPACE4, at, 0, 1, 1, 8, 0, 0, 0, 0, 9}};
    for (unsigned i = 0; i < 9; i++) plan.column[i] = (struct ca_column){sizes[i], 1, {offsets[i]}};
    uint64_t out[16], status[CA_STATUS_WORDS];
    struct cursor cursor = {{0}};
    CHECK_EQUAL(ca_walk(mem, 0, 1000, &plan, sizeof plan, out, sizeof out, 1, &cursor, status), CA_MORE);
    CHECK_EQUAL(status[0], 1);
    uint8_t *cell = (uint8_t *)(out + 1), expected[32];
    for (unsigned i = 0; i < 9; cell += sizes[i++]) {
        uint32_t reason = read_at(mem, SPACE4, at + offsets[i], expected, (uint32_t)sizes[i], NULL);
        /* The last goes on where nothing is mapped. */
        CHECK_EQUAL(reason, i == 8 ? CA_F_NOT_PRESENT : CA_F_NONE);
        if (i == 8) memset(expected, 0, sizes[i]);
        CHECK(memcmp(cell, expected, sizes[i]) == 0);
    }
    for (unsigned i = 0; i < 9; i++) CHECK_EQUAL(cell[i], i == 8 ? CA_CELL_FAULT : CA_CELL_OK);
    guest_fill(ram);
}

static void misuse(void) {
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS], out[64];
    struct plan good = plan_of(CA_WALK_LIST, AT_LIST), bad = good;
#define WALK(plan, size, bytes, rows) \
    ca_walk(mem, 0, 1000, plan, size, out, bytes, rows, memset(&cursor, 0, sizeof cursor), status)
    CHECK_EQUAL(WALK(&good, sizeof good, 63, 3), CA_OK + CA_MORE);
    CHECK_EQUAL(WALK(&good, sizeof good, 62, 3), CA_E_ARGUMENT);
    CHECK_EQUAL(WALK(&good, sizeof good - 1, 512, 3), CA_E_ARGUMENT);
    CHECK_EQUAL(WALK(&good, sizeof good, 512, 0), CA_E_ARGUMENT);
    CHECK_EQUAL(WALK(&good, sizeof good, 512, UINT32_MAX), CA_E_ARGUMENT);
    bad.head.columns = ~0ull;
    CHECK_EQUAL(WALK(&bad, sizeof bad, 512, 1), CA_E_ARGUMENT);
    bad = good;
    bad.head.kind = 7;
    CHECK_EQUAL(WALK(&bad, sizeof bad, 512, 1), CA_E_ARGUMENT);
    bad = good;
    bad.column[0].size = 4097;
    CHECK_EQUAL(WALK(&bad, sizeof bad, 512, 1), CA_E_ARGUMENT);
    bad = good;
    bad.column[1].length = 9;
    CHECK_EQUAL(WALK(&bad, sizeof bad, 512, 1), CA_E_ARGUMENT);
    /* A cursor somebody changed must not lead outside its stack. */
    bad = plan_of(CA_WALK_RBTREE, AT_RBTREE);
    CHECK_EQUAL(WALK(&bad, sizeof bad, 512, 1), CA_MORE);
    ((struct ca_walk *)(void *)&cursor)->depth = 97;
    CHECK_EQUAL(ca_walk(mem, 0, 1000, &bad, sizeof bad, out, 512, 1, &cursor, status), CA_E_CURSOR);
}

void test_walk(void) {
    int fd = guest_new(&ram);
    mem = guest_open(fd, 0);
    kinds();
    lies();
    pages_apart();
    misuse();
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    close(fd);
}
