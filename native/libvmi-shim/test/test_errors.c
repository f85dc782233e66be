/* Handles, arguments and cursors: misuse is an error code with a text, never a crash. */
#include <unistd.h>

#include "test.h"

static void opening(void) {
    char text[64] = "";
    CHECK_EQUAL(ca_abi_version(), CA_ABI_VERSION);
    CHECK_EQUAL(ca_mem_open_file("/does/not/exist", NULL, 0, 0), CA_E_OPEN);
    CHECK(ca_last_error(text, sizeof text) > 0 && strstr(text, "/does/not/exist") != NULL);
    /* A text that does not fit is cut and ended. */
    char cut[8];
    memset(cut, 'x', sizeof cut);
    CHECK(ca_last_error(cut, 4) > 4 && cut[3] == 0 && cut[4] == 'x');
    CHECK_EQUAL(ca_mem_open_file("/", NULL, 0, 0), CA_E_OPEN);
    CHECK_EQUAL(ca_mem_open_file("/dev/null", NULL, 0, 0), CA_E_OPEN);
    CHECK_EQUAL(ca_mem_open_file("/proc/self/status", NULL, 0, 0), CA_E_OPEN); /* a regular file of size 0 */
    CHECK_EQUAL(ca_mem_open_file(NULL, NULL, 0, 0), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_mem_open_file("/dev/null", NULL, 0, 8), CA_E_ARGUMENT);
}

/* Every second page of an address range, in reverse order of the file. */
static void many_regions(const char *path) {
    enum { COUNT = 3001 };
    static uint64_t table[COUNT][3];
    for (uint64_t i = 0; i < COUNT; i++) {
        table[i][0] = 0x10000 + i * 0x2000;
        table[i][1] = 0x1000;
        table[i][2] = (GUEST_SIZE / 0x1000 - 1 - i % (GUEST_SIZE / 0x1000)) * 0x1000;
    }
    int32_t many = ca_mem_open_file(path, table, COUNT, 0), whole = ca_mem_open_file(path, NULL, 0, 0);
    CHECK(many > 0 && whole > 0);
    for (uint64_t i = 0; i < COUNT; i++) {
        uint64_t found[2], expected[2];
        CHECK_EQUAL(read_at(many, 0, table[i][0] + 0xff0, found, 16, NULL), 0);
        CHECK_EQUAL(read_at(whole, 0, table[i][2] + 0xff0, expected, 16, NULL), 0);
        CHECK(memcmp(found, expected, 16) == 0);
        CHECK_EQUAL(read_at(many, 0, table[i][0] + 0x1000, found, 1, NULL), CA_F_OUTSIDE_RAM);
        CHECK_EQUAL(read_at(many, 0, table[i][0] - 1, found, 1, NULL), CA_F_OUTSIDE_RAM);
    }
    CHECK_EQUAL(ca_mem_close(many), CA_OK);
    CHECK_EQUAL(ca_mem_close(whole), CA_OK);
}

static void region_tables(int fd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    uint64_t overlap[6] = {0, 0x2000, 0, 0x1000, 0x1000, 0x2000};
    CHECK_EQUAL(ca_mem_open_file(path, overlap, 2, 0), CA_E_ARGUMENT);
    uint64_t empty[3] = {0, 0, 0}, wild[3] = {1ull << 52, 0x1000, 0}, wrap[3] = {~0ull - 10, 100, 0};
    CHECK_EQUAL(ca_mem_open_file(path, empty, 1, 0), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_mem_open_file(path, wild, 1, 0), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_mem_open_file(path, wrap, 1, 0), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_mem_open_file(path, empty, 65537, 0), CA_E_ARGUMENT);

    many_regions(path);

    /* A hole, parts in another order than in the file, and one that is longer than the file. */
    uint64_t table[9] = {0x100000000, 0x2000, 0, 0, 0x1000, 0x2000, 0x200000000, 0x2000, GUEST_SIZE - 0x1000};
    int32_t mem = ca_mem_open_file(path, table, 3, 0);
    CHECK(mem > 0);
    CHECK_EQUAL(ca_mem_end(mem), 0x200002000);
    uint8_t bytes[16];
    struct fault_row fault;
    CHECK_EQUAL(read_at(mem, 0, 0, bytes, 8, NULL), 0);
    CHECK_EQUAL(read_at(mem, 0, 0x1000, bytes, 8, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(read_at(mem, 0, 0xffc, bytes, 8, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(fault.address, 0x1000);
    CHECK_EQUAL(read_at(mem, 0, 0x100001ff8, bytes, 8, NULL), 0);
    CHECK_EQUAL(read_at(mem, 0, 0x200000ff8, bytes, 16, &fault), CA_F_SOURCE);
    CHECK_EQUAL(fault.address, 0x200001000);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
}

static void handles(int fd) {
    int32_t mem = guest_open(fd, 0), other;
    uint64_t status[CA_STATUS_WORDS], at = 0, request[5] = {0, 0, 1, 8, 0};
    uint8_t out[8], faults[32];
    struct cursor cursor = {{0}};
    CHECK(mem > 0);
    CHECK_EQUAL(ca_mem_end(mem), GUEST_SIZE);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    CHECK_EQUAL(ca_mem_close(mem), CA_E_HANDLE);
    CHECK_EQUAL(ca_mem_end(mem), 0);
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_E_HANDLE);
    CHECK_EQUAL(ca_mem_revoke(mem), CA_E_HANDLE);
    /* The slot is used again, the old handle stays dead. */
    other = guest_open(fd, 0);
    CHECK(other > 0 && other != mem);
    CHECK_EQUAL(ca_read(mem, 0, 1000, request, 1, &at, 1, out, 8, faults, 1, &cursor, status), CA_E_HANDLE);
    int32_t wrong[] = {0, -1, 1, INT32_MAX, INT32_MIN};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) CHECK_EQUAL(ca_mem_close(wrong[i]), CA_E_HANDLE);
    CHECK_EQUAL(ca_mem_close(other), CA_OK);

    int32_t many[2000];
    unsigned count = 0;
    while (count < 2000 && (many[count] = guest_open(fd, 0)) > 0) count++;
    /* Handles or, where descriptors are fewer, those run out. */
    CHECK(count < 2000 && (many[count] == CA_E_NOMEM || many[count] == CA_E_OPEN));
    while (count > 0) CHECK_EQUAL(ca_mem_close(many[--count]), CA_OK);
}

static void arguments(int fd) {
    int32_t mem = guest_open(fd, 0);
    uint64_t status[CA_STATUS_WORDS], at[2] = {0, 0}, request[5] = {0, 0, 1, 8, 0};
    uint8_t out[16], faults[32];
    struct cursor cursor = {{0}};
#define READ(rows, addresses, size) \
    ca_read(mem, 0, 1000, rows, 1, at, addresses, out, size, faults, 1, memset(&cursor, 0, sizeof cursor), status)
    CHECK_EQUAL(READ(request, 1, 8), CA_OK);
    CHECK_EQUAL(READ(request, 1, 7), CA_E_ARGUMENT);
    CHECK_EQUAL(READ(request, 0, 8), CA_E_ARGUMENT);
    uint64_t beyond[][5] = {{0, 1, 1, 8, 0},      {0, 0, 2, 8, 0},         {0, 0, 1, 8, 9},   {0, 0, 1, 0, 0},
                            {0, ~0ull, 1, 8, 0},  {0, 0, ~0ull, 8, 0},     {0, 0, 1, ~0ull, 0}, {0, 0, 1, 8, ~0ull},
                            {3, 0, 1, 8, 0},      {0x1000, 0, 1, 8, 0},    {1ull << 52 | 4, 0, 1, 8, 0},
                            {6 | 0x1000, 0, 1, 8, 0}};
    for (unsigned i = 0; i < sizeof beyond / sizeof *beyond; i++) CHECK_EQUAL(READ(beyond[i], 1, 16), CA_E_ARGUMENT);
    /* A finished cursor, and one of another verb. */
    CHECK_EQUAL(READ(request, 1, 8), CA_OK);
    CHECK_EQUAL(ca_read(mem, 0, 1000, request, 1, at, 1, out, 8, faults, 1, &cursor, status), CA_E_CURSOR);
    uint8_t present[1], digest[32];
    ((uint32_t *)(void *)cursor.bytes)[1] = 0;
    CHECK_EQUAL(ca_digest(mem, 0, 1000, 0, 0, 1, digest, present, &cursor, status), CA_E_CURSOR);
    CHECK_EQUAL(ca_read(mem, 0, 1000, request, 1, at, 1, out, 8, faults, 1, NULL, status), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_read(mem, 0, 1000, request, 1, at, 1, out, 8, faults, 1, cursor.bytes + 1, status), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_write(mem, 0, 1000, 0, 0, out, 8, memset(&cursor, 0, sizeof cursor), status), CA_E_READONLY);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
}

/* Mappings of the guest's file in this process. */
static unsigned views(void) {
    char line[512];
    unsigned count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL) count += strstr(line, "memfd:guest") != NULL;
    fclose(maps);
    return count;
}

static void revocation(int fd) {
    unsigned before = views();
    int32_t mem = guest_open(fd, CA_OPEN_WRITE);
    uint64_t status[CA_STATUS_WORDS], at = AT_ELEMENTS, request[5] = {0, 0, 1, 8, 0};
    uint8_t out[8], faults[32];
    struct cursor cursor = {{0}};
    CHECK_EQUAL(read_at(mem, 0, at, out, 8, NULL), 0);
    CHECK_EQUAL(out[0], 100);
    CHECK_EQUAL(views(), before + 1);
    CHECK_EQUAL(ca_mem_revoke(mem), CA_OK);
    /* Still open, and nothing of the guest in reach. */
    CHECK_EQUAL(views(), before);
    CHECK_EQUAL(ca_mem_revoke(mem), CA_OK);
    CHECK_EQUAL(ca_read(mem, 0, 1000, request, 1, &at, 1, out, 8, faults, 1, &cursor, status), CA_E_REVOKED);
    CHECK_EQUAL(ca_write(mem, 0, 1000, 0, 0, out, 8, memset(&cursor, 0, sizeof cursor), status), CA_E_REVOKED);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
}

void test_errors(void) {
    uint8_t *ram;
    int fd = guest_new(&ram);
    opening();
    region_tables(fd);
    handles(fd);
    arguments(fd);
    revocation(fd);
    close(fd);
}
