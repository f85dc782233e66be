#include <unistd.h>

#include "test.h"

static uint8_t *ram;
static int32_t mem;

static uint64_t word(uint64_t space, uint64_t va) {
    uint64_t value = 0;
    CHECK_EQUAL(read_at(mem, space, va, &value, 8, NULL), 0);
    return value;
}

static void expect(uint64_t space, uint64_t va, uint32_t reason, uint32_t level, uint64_t entry) {
    struct fault_row fault = {0, 0, 0, 0, 0, 0};
    uint64_t value = ~0ull;
    CHECK_EQUAL(read_at(mem, space, va, &value, 8, &fault), reason);
    CHECK_EQUAL(fault.level, level);
    CHECK_EQUAL(fault.entry, entry);
    CHECK_EQUAL(fault.address, va);
    CHECK_EQUAL(value, 0);
}

static uint64_t slot(unsigned levels, unsigned level, uint64_t va) {
    uint64_t table = levels == 4 ? ROOT4 : ROOT5;
    for (unsigned at = levels;; at--) {
        uint64_t here = table + ((va >> (12 + 9 * (at - 1))) & 511) * 8;
        if (at == level) return here;
        memcpy(&table, ram + here, 8);
        table &= 0xffffffffff000ull;
    }
}

static void every_level(unsigned levels) {
    uint64_t space = levels == 4 ? SPACE4 : SPACE5, at = VIRT(AT_ELEMENTS);
    CHECK_EQUAL(word(space, at), 100);
    CHECK_EQUAL(word(space, VA_LARGE + AT_ELEMENTS), 100);
    CHECK_EQUAL(word(space, VA_HUGE + AT_ELEMENTS), 100);
    for (unsigned level = levels; level > 0; level--) {
        uint64_t place = slot(levels, level, at), good;
        memcpy(&good, ram + place, 8);
        /* Linux inverts the address bits of PROT_NONE entries: not present is all that counts. */
        guest_put(ram, place, ~good & ~ENTRY_PRESENT);
        expect(space, at, CA_F_NOT_PRESENT, level, ~good & ~ENTRY_PRESENT);
        guest_put(ram, place, (good & ~0xffffffffff000ull) | 0xfff00000000ull);
        expect(space, at, CA_F_OUTSIDE_RAM, level - 1, (good & ~0xffffffffff000ull) | 0xfff00000000ull);
        if (level > 1) {
            /* Above level 3 there are no large pages; below, bit 13 is no part of their address. */
            uint64_t bad = ENTRY_PRESENT | ENTRY_LARGE | (level > 3 ? 0 : 0x2000);
            guest_put(ram, place, bad);
            expect(space, at, CA_F_RESERVED_BIT, level, bad);
        }
        /* Bits 52..58 are for software. */
        guest_put(ram, place, good | 0x7full << 52);
        CHECK_EQUAL(word(space, at), 100);
        guest_put(ram, place, good);
    }
    CHECK_EQUAL(word(space, at), 100);
}

static void addresses(void) {
    expect(SPACE4, 1ull << 47, CA_F_NON_CANONICAL, 4, 0);
    expect(SPACE4, 0xffff7fffffffffffull - 7, CA_F_NON_CANONICAL, 4, 0);
    expect(SPACE5, 1ull << 56, CA_F_NON_CANONICAL, 5, 0);
    expect(SPACE5, 1ull << 47, CA_F_NOT_PRESENT, 5, 0);
    struct fault_row fault;
    uint8_t bytes[16];
    CHECK_EQUAL(read_at(mem, 0, ~0ull - 3, bytes, 8, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(read_at(mem, SPACE4, ~0ull - 3, bytes, 8, &fault), CA_F_NOT_PRESENT);
    /* The page before the last of RAM in a 2 MiB page: its end is where RAM ends. */
    CHECK_EQUAL(read_at(mem, SPACE4, VA_LARGE + GUEST_SIZE - 8, bytes, 16, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(fault.address, VA_LARGE + GUEST_SIZE);
    /* The root's low bits are not part of it; a root outside RAM. */
    CHECK_EQUAL(read_at(mem, (1ull << 40) | 4, 0, bytes, 8, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(fault.level, 4);
    /* All lead to the maze's own page. */
    CHECK_EQUAL(word(SPACE_MAZE, 0x123456789000), ROOT_MAZE | ENTRY_PRESENT | ENTRY_WRITE);
}

static void kept_levels(void) {
    uint64_t at = VIRT(AT_ELEMENTS), place = slot(4, 2, at), good, value, status[CA_STATUS_WORDS];
    uint64_t request[5] = {SPACE4, 0, 1, 8, 0};
    struct fault_row fault;
    struct cursor cursor = {{0}};
    memcpy(&good, ram + place, 8);
#define READ(flags) \
    (ca_read(mem, flags, 1000, request, 1, &at, 1, &value, 8, &fault, 1, memset(&cursor, 0, sizeof cursor), status), status[0])
    CHECK_EQUAL(READ(0), 0);
    /* What is kept belongs to one space: the same root with one level more is another. */
    request[0] = ROOT4 | 5;
    CHECK_EQUAL(READ(CA_KEEP), 1);
    request[0] = SPACE4;
    CHECK_EQUAL(READ(CA_KEEP), 0);
    guest_put(ram, place, 0);
    /* Kept as asked; dropped without the flag, and by invalidation. */
    CHECK_EQUAL(READ(CA_KEEP), 0);
    CHECK_EQUAL(READ(0), 1);
    guest_put(ram, place, good);
    CHECK_EQUAL(READ(0), 0);
    guest_put(ram, place, 0);
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_OK);
    CHECK_EQUAL(READ(CA_KEEP), 1);
    guest_put(ram, place, good);
    /* The last level is never kept. */
    place = slot(4, 1, at);
    memcpy(&good, ram + place, 8);
    CHECK_EQUAL(READ(0), 0);
    guest_put(ram, place, 0);
    CHECK_EQUAL(READ(CA_KEEP), 1);
    guest_put(ram, place, good);
}

static void writing(int fd) {
    int32_t writable = guest_open(fd, CA_OPEN_WRITE);
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS];
    CHECK_EQUAL(ca_write(writable, 0, 1000, SPACE5, VIRT(0x30000) - 3, "abcdef", 6, &cursor, status), CA_OK);
    CHECK_EQUAL(status[0], 6);
    CHECK(memcmp(ram + 0x30000 - 3, "abcdef", 6) == 0);
    memset(&cursor, 0, sizeof cursor);
    CHECK_EQUAL(ca_write(writable, 0, 1000, 0, GUEST_SIZE - 2, "abcdef", 6, &cursor, status), CA_OK);
    CHECK_EQUAL(status[0], 2);
    CHECK_EQUAL(status[1], CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(status[3], GUEST_SIZE);
    CHECK_EQUAL(ca_mem_close(writable), CA_OK);
}

void test_paging(void) {
    int fd = guest_new(&ram);
    mem = guest_open(fd, 0);
    CHECK(mem > 0);
    every_level(4);
    every_level(5);
    addresses();
    kept_levels();
    writing(fd);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    close(fd);
}
