/* pages, search, digest. */
#include <unistd.h>

#include "test.h"

static uint8_t *ram;
static int32_t mem;

static void pages(void) {
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS], out[4];
    int32_t code;
    unsigned runs = 0, calls = 0;
    /* One row a call, no time at all: the same as in one go. */
    do {
        code = ca_pages(mem, 0, 0, SPACE5, 0, ~0ull, 0, 100, out, 1, &cursor, status);
        CHECK(code >= 0 && ++calls < 100000);
        if (status[0] == 0) continue;
        CHECK_EQUAL(out[0], runs == 0 ? VA_DIRECT : runs == 1 ? VA_LARGE : VA_HUGE);
        CHECK_EQUAL(out[1], 0);
        CHECK_EQUAL(out[2], runs == 0 ? GUEST_SIZE : runs == 1 ? 2ull << 20 : 1ull << 30);
        CHECK_EQUAL(*(uint8_t *)(out + 3), runs == 0 ? CA_PAGE_WRITE : CA_PAGE_EXECUTE);
        runs++;
    } while (code == CA_MORE);
    CHECK_EQUAL(runs, 3);
    CHECK_EQUAL(status[1], CA_END_COMPLETE);

    /* 2^36 mappings of one page. */
    memset(&cursor, 0, sizeof cursor);
    CHECK_EQUAL(ca_pages(mem, 0, ~0u, SPACE_MAZE, 0, ~0ull, 0, 1, out, 1, &cursor, status), CA_OK);
    CHECK_EQUAL(status[1], CA_END_LIMIT);
    CHECK_EQUAL(status[2], 0x1000);
    /* None of them is executable for users: looked through in slices that end. */
    memset(&cursor, 0, sizeof cursor);
    CHECK_EQUAL(ca_pages(mem, 0, 0, SPACE_MAZE, 0, ~0ull, CA_PAGE_USER, 1, out, 1, &cursor, status), CA_MORE);
    CHECK_EQUAL(status[0], 0);
    CHECK_EQUAL(ca_pages(mem, 0, 0, 0, 0, ~0ull, 0, 1, out, 1, memset(&cursor, 0, sizeof cursor), status), CA_E_ARGUMENT);
}

struct pattern {
    uint32_t length, zero;
    uint8_t bytes[256];
};

static unsigned find(uint64_t space, uint64_t start, uint64_t last, const char *text, uint32_t align, uint32_t offset,
                     uint64_t *matches) {
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS];
    static struct pattern patterns[2];
    patterns[0].length = (uint32_t)strlen(text);
    memcpy(patterns[0].bytes, text, patterns[0].length);
    patterns[1].length = 3;
    memcpy(patterns[1].bytes, "\xf3\xf4\xf5", 3);
    unsigned found = 0;
    int32_t code;
    do {
        uint64_t *out = malloc(16 * 16);
        code = ca_search(mem, 0, 0, space, start, last, patterns, 2, align, offset, 32, out, 16, &cursor, status);
        CHECK(code >= 0);
        for (unsigned i = 0; i < status[0]; i++) {
            CHECK_EQUAL(out[2 * i + 1], 0);
            matches[found++] = out[2 * i];
        }
        free(out);
    } while (code == CA_MORE);
    return found;
}

static void search(void) {
    uint64_t at[64];
    CHECK_EQUAL(find(0, 0, ~0ull, "needle-", 1, 0, at), 2);
    CHECK_EQUAL(at[0], 20 * 4096 + 100);
    CHECK_EQUAL(at[1], 21 * 4096 - 4);
    CHECK_EQUAL(find(SPACE4, VIRT(0), VIRT(GUEST_SIZE - 1), "needle-two", 1, 0, at), 1);
    CHECK_EQUAL(at[0], VIRT(21 * 4096 - 4));
    CHECK_EQUAL(find(SPACE5, 0, ~0ull, "needle-two", 4096, 4092, at), 3);
    CHECK_EQUAL(at[2], VA_HUGE + 21 * 4096 - 4);
    CHECK_EQUAL(find(0, 0, 20 * 4096 + 109, "needle-one", 1, 0, at), 1);
    CHECK_EQUAL(find(0, 0, 20 * 4096 + 108, "needle-one", 1, 0, at), 0);
    CHECK_EQUAL(find(0, 0, ~0ull, "needle-one", 4, 0, at), 1);
    CHECK_EQUAL(find(0, 0, ~0ull, "needle-one", 8, 0, at), 0);
    memcpy(ram + GUEST_SIZE - 3, "end", 3);
    CHECK_EQUAL(find(0, 0, ~0ull, "end", 1, 0, at), 1);
    CHECK_EQUAL(find(0, 0, ~0ull, "end", 256, 253, at), 1);
    CHECK_EQUAL(find(0, GUEST_SIZE - 3, GUEST_SIZE - 2, "end", 1, 0, at), 0);
}

static void digest(void) {
    static const uint8_t zeros[32] = {0xad, 0x7f, 0xac, 0xb2, 0x58, 0x6f, 0xc6, 0xe9, 0x66, 0xc0, 0x04,
                                      0xd7, 0xd1, 0xd1, 0x6b, 0x02, 0x4f, 0x58, 0x05, 0xff, 0x7c, 0xb4,
                                      0x7c, 0x7a, 0x85, 0xda, 0xbd, 0x8b, 0x48, 0x89, 0x2c, 0xa7};
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS];
    uint8_t *out = malloc(3 * 32), *present = malloc(3);
    int32_t code;
    do {
        code = ca_digest(mem, 0, 0, SPACE4, VIRT(GUEST_SIZE - 0x3000), 3, out, present, &cursor, status);
        CHECK(code >= 0);
    } while (code == CA_MORE);
    CHECK_EQUAL(present[0] + present[1] + present[2], 3);
    CHECK(memcmp(out, zeros, 32) == 0); /* SHA-256 of 4,096 zeros */
    CHECK(memcmp(out + 64, zeros, 32) != 0);
    static const uint8_t nothing[32];
    memset(&cursor, 0, sizeof cursor);
    memset(out, 0xff, 64);
    CHECK_EQUAL(ca_digest(mem, 0, ~0u, 0, GUEST_SIZE - 0x1000, 2, out, present, &cursor, status), CA_OK);
    CHECK_EQUAL(present[0], 1);
    CHECK_EQUAL(present[1], 0);
    CHECK(memcmp(out + 32, nothing, 32) == 0);
    memset(&cursor, 0, sizeof cursor);
    CHECK_EQUAL(ca_digest(mem, 0, ~0u, 0, 1, 1, out, present, &cursor, status), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_digest(mem, 0, ~0u, 0, ~0ull << 12, 2, out, present, &cursor, status), CA_E_ARGUMENT);
    free(out);
    free(present);
}

void test_scan(void) {
    int fd = guest_new(&ram);
    mem = guest_open(fd, 0);
    pages();
    search();
    digest();
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    close(fd);
}
