/* The backend of a Xen domain over a domain of our own. */
#include <unistd.h>

#include "xen_domain.h"

static void evicts(void) {
    int32_t mem = ca_xen_open(7, 0, 2 * RUN);
    CHECK(mem > 0);
    CHECK_EQUAL(domain.live, 0);
    CHECK_EQUAL(ca_mem_end(mem), (uint64_t)FRAMES * PAGE);
    domain.most = 0;
    uint64_t seed = 1;
    for (int i = 0; i < 300; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t at = (seed >> 33) % ((uint64_t)FRAMES * PAGE - 8) & ~7ull, value = 0;
        uint32_t reason = read_at(mem, 0, at, &value, 8, NULL);
        CHECK_EQUAL(reason, domain.missing[at / PAGE] ? CA_F_OUTSIDE_RAM : CA_F_NONE);
        CHECK_EQUAL(value, domain.missing[at / PAGE] ? 0 : word_of(at));
    }
    /* Two runs, and one page that is asked for again. */
    CHECK(domain.most <= 2 * 512 + 1);
    /* Across the end of a run, and into a hole. */
    uint64_t both[2];
    struct fault_row fault;
    CHECK_EQUAL(read_at(mem, 0, 3 * RUN - 8, both, 16, NULL), 0);
    CHECK_EQUAL(both[1], word_of(3 * RUN));
    CHECK_EQUAL(read_at(mem, 0, 5 * RUN - 8, both, 16, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(fault.address, 5 * RUN);
    CHECK_EQUAL(read_at(mem, 0, (uint64_t)FRAMES * PAGE, both, 8, NULL), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    CHECK_EQUAL(domain.live, 0);
}

/* Fields of a row in more places than may be mapped: none is read where another was mapped meanwhile. */
static void walks_further_than_is_mapped(void) {
    struct {
        uint64_t words[12];
        struct {
            uint64_t size, length, path[8];
        } column[3];
    } plan = {{CA_WALK_ARRAY, 0, 9 * RUN, 0, 8, 8, PAGE, 0, 0, 0, 0, 3}, {{8, 1, {0}}, {8, 1, {3 * RUN}}, {8, 1, {64}}}};
    uint64_t out[8 * 5], status[CA_STATUS_WORDS];
    int32_t mem = ca_xen_open(7, 0, RUN);
    struct cursor cursor = {{0}};
    CHECK_EQUAL(ca_walk(mem, 0, UINT32_MAX, &plan, sizeof plan, out, sizeof out, 8, &cursor, status), CA_MORE);
    CHECK_EQUAL(status[0], 8);
    for (unsigned row = 0; row < 8; row++)
        for (unsigned i = 0; i < 3; i++) {
            uint64_t at = 9 * (uint64_t)RUN + row * PAGE + plan.column[i].path[0];
            CHECK_EQUAL(out[8 + i * 8 + row], domain.missing[at / PAGE] ? 0 : word_of(at));
        }
    ca_mem_close(mem);
}

static void maps_once(void) {
    int32_t mem = ca_xen_open(7, 0, 0);
    uint64_t counts[2], value;
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_OK);
    CHECK_EQUAL(counts[1], 0);
    unsigned before = domain.calls;
    for (uint64_t page = 0; page < 512; page++) CHECK_EQUAL(read_at(mem, 0, RUN + page * PAGE, &value, 8, NULL), 0);
    CHECK_EQUAL(domain.calls - before, 1);
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_OK);
    CHECK_EQUAL(counts[1], 512);
    ca_mem_close(mem);
}

/* Who is led into holes keeps what is mapped. */
static void keeps_through_holes(void) {
    int32_t mem = ca_xen_open(7, 0, 8 * RUN);
    const unsigned runs[] = {0, 1, 2, 3, 4, 9};
    uint64_t value;
    for (int i = 0; i < 6; i++) CHECK_EQUAL(read_at(mem, 0, runs[i] * (uint64_t)RUN, &value, 8, NULL), 0);
    for (uint64_t hole = 5; hole < 9; hole++) CHECK_EQUAL(read_at(mem, 0, hole * RUN, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    unsigned before = domain.calls;
    for (int i = 0; i < 6; i++) CHECK_EQUAL(read_at(mem, 0, runs[i] * (uint64_t)RUN, &value, 8, NULL), 0);
    CHECK_EQUAL(domain.calls - before, 0);
    ca_mem_close(mem);
    CHECK_EQUAL(domain.live, 0);
}

static void comes_and_goes(void) {
    int32_t mem = ca_xen_open(7, 0, 0);
    uint64_t at = 10 * RUN + 5 * PAGE, value;
    CHECK_EQUAL(read_at(mem, 0, at, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    domain.missing[at / PAGE] = false;
    CHECK_EQUAL(read_at(mem, 0, at, &value, 8, NULL), CA_F_NONE);
    CHECK_EQUAL(value, word_of(at));
    domain.missing[at / PAGE] = true;
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_OK);
    CHECK_EQUAL(domain.live, 0);
    CHECK_EQUAL(read_at(mem, 0, at, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    /* What is mapped when the domain goes can still be read; what is not is a fault, and then the source has gone. */
    CHECK_EQUAL(read_at(mem, 0, RUN, &value, 8, NULL), CA_F_NONE);
    domain.gone = true;
    CHECK_EQUAL(read_at(mem, 0, RUN, &value, 8, NULL), CA_F_NONE);
    CHECK_EQUAL(read_at(mem, 0, 15 * RUN, &value, 8, NULL), CA_F_SOURCE);
    uint64_t counts[2];
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_E_SOURCE);
    ca_mem_close(mem);
    CHECK_EQUAL(domain.live, 0);
    CHECK_EQUAL(ca_xen_open(7, 0, 0), CA_E_OPEN);
    domain.gone = false;
}

static void writes_and_revokes(void) {
    uint64_t status[CA_STATUS_WORDS], value = 5;
    struct cursor cursor = {{0}};
    int32_t mem = ca_xen_open(7, 0, 0);
    CHECK_EQUAL(ca_write(mem, 0, 1000, 0, RUN, &value, 8, &cursor, status), CA_E_READONLY);
    ca_mem_close(mem);
    mem = ca_xen_open(7, CA_OPEN_WRITE, 0);
    cursor = (struct cursor){{0}};
    CHECK_EQUAL(ca_write(mem, 0, 1000, 0, RUN, &value, 8, &cursor, status), CA_OK);
    value = 0;
    CHECK_EQUAL(read_at(mem, 0, RUN, &value, 8, NULL), 0);
    CHECK_EQUAL(value, 5);
    CHECK(domain.live > 0);
    CHECK_EQUAL(ca_mem_revoke(mem), CA_OK);
    CHECK_EQUAL(domain.live, 0);
    uint64_t counts[2];
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_E_REVOKED);
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_OK);
    CHECK_EQUAL(domain.live, 0);
    ca_mem_close(mem);
}

/* A domain that Xen lets map the other, and ask nothing. */
static void is_direct(void) {
    uint64_t value;
    domain.blind = true;
    CHECK_EQUAL(ca_xen_open(7, 0, 0), CA_E_OPEN);
    CHECK_EQUAL(ca_xen_open(7, CA_XEN_DIRECT | CA_OPEN_WRITE, 0), CA_E_UNSUPPORTED);
    int32_t mem = ca_xen_open(7, CA_XEN_DIRECT, 0);
    CHECK(mem > 0);
    /* Found to the end, over the hole. */
    CHECK_EQUAL(ca_mem_end(mem), (uint64_t)FRAMES * PAGE);
    CHECK_EQUAL(read_at(mem, 0, 23 * RUN, &value, 8, NULL), 0);
    CHECK_EQUAL(value, word_of(23 * RUN));
    CHECK_EQUAL(read_at(mem, 0, 6 * RUN, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(ca_xen_probe(mem), CA_OK);
    CHECK(domain.live > 0);
    /* Taken back: what was mapped goes, and stays away when the right comes again. */
    domain.unmappable = true;
    CHECK_EQUAL(ca_xen_probe(mem), CA_E_REVOKED);
    CHECK_EQUAL(domain.live, 0);
    CHECK_EQUAL(ca_xen_open(7, CA_XEN_DIRECT, 0), CA_E_UNSUPPORTED);
    domain.unmappable = false;
    CHECK_EQUAL(ca_xen_probe(mem), CA_E_REVOKED);
    ca_mem_close(mem);
    /* A verb that meets the refusal ends the rest. */
    mem = ca_xen_open(7, CA_XEN_DIRECT, 0);
    CHECK_EQUAL(read_at(mem, 0, RUN, &value, 8, NULL), 0);
    domain.unmappable = true;
    CHECK_EQUAL(read_at(mem, 0, 2 * RUN, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    uint64_t counts[2];
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_E_REVOKED);
    CHECK_EQUAL(domain.live, 0);
    ca_mem_close(mem);
    domain.unmappable = domain.blind = false;
    CHECK_EQUAL(ca_xen_probe(mem), CA_E_HANDLE);
}

static void describes(void) {
    uint64_t rows[3 * CA_XEN_DOMAIN_WORDS], vcpu[CA_XEN_VCPU_WORDS];
    CHECK_EQUAL(ca_xen_domains(0, rows, 3), 2);
    CHECK_EQUAL(ca_xen_version(), 4 << 16 | 17);
    domain.mute = true;
    CHECK_EQUAL(ca_xen_version(), 0);
    domain.mute = false;
    CHECK_EQUAL(rows[0], 7);
    CHECK_EQUAL(rows[1], CA_XEN_HVM);
    CHECK_EQUAL(rows[2], FRAMES);
    CHECK_EQUAL(rows[3], 1);
    CHECK_EQUAL(((uint8_t *)(rows + 5))[15], 0xaf);
    CHECK_EQUAL(rows[CA_XEN_DOMAIN_WORDS], 8);
    CHECK_EQUAL(ca_xen_open(8, 0, 0), CA_E_UNSUPPORTED);
    CHECK_EQUAL(ca_xen_open(9, 0, 0), CA_E_OPEN);
    CHECK_EQUAL(ca_xen_open(7, 2, 0), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_xen_open(7, 0, RUN - 1), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_xen_vcpu(7, 0, vcpu), CA_OK);
    const uint64_t expected[] = {0x1111, 0x7777, 0, 0, 0x3333, 0, 0xd01, 0x4444, 0x5555, 0x8888, 4095, 0, 0x6666, 0};
    for (int i = 0; i < CA_XEN_VCPU_WORDS; i++) CHECK_EQUAL(vcpu[i], expected[i]);
    CHECK_EQUAL(ca_xen_vcpu(7, 1, vcpu), CA_E_OPEN);
    CHECK_EQUAL(ca_xen_pause(7), CA_OK);
    CHECK_EQUAL(domain.pauses, 1);
    CHECK_EQUAL(ca_xen_pause(9), CA_E_OPEN);
    CHECK_EQUAL(ca_xen_unpause(7), CA_OK);
    CHECK_EQUAL(ca_xen_unpause(7), CA_E_SOURCE);
}

void test_xen(void) {
    ca_xen_use(&domain_xen);
    domain_fill();
    describes();
    evicts();
    walks_further_than_is_mapped();
    maps_once();
    test_xen_search();
    keeps_through_holes();
    comes_and_goes();
    writes_and_revokes();
    is_direct();
    close(domain.file);
    ca_xen_use(NULL);
}
