/* The backend of a Xen domain over a domain of our own: a memory file whose frames can come, go and be missing. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "test.h"
#include "xen.h"

#define FRAMES (24u * 512u)
#define PAGE 4096u
#define RUN (2u << 20)

static int file;
static bool missing[FRAMES], gone, unmappable, blind, mute;
static unsigned live, most, calls;
static int pauses;

static void *open_any(void *logger, unsigned flags) {
    (void)logger, (void)flags;
    return &file;
}

static int close_any(void *handle) {
    CHECK(handle == &file);
    return 0;
}

static void *map(void *handle, uint32_t domid, int prot, size_t pages, const uint64_t *frames, int *errors) {
    CHECK(handle == &file && domid == 7);
    calls++;
    if (gone) {
        errno = ESRCH;
        return NULL;
    }
    if (unmappable || (blind && (prot & PROT_WRITE) != 0)) {
        /* As Linux reports what FLASK refuses: page by page. */
        for (size_t i = 0; i < pages; i++) errors[i] = EACCES;
        live++;
        return mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    uint8_t *base = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    for (size_t i = 0; i < pages; i++) {
        errors[i] = frames[i] >= FRAMES || missing[frames[i]] ? EINVAL : 0;
        if (errors[i] == 0)
            CHECK(mmap(base + i * PAGE, PAGE, prot, MAP_SHARED | MAP_FIXED, file, (off_t)(frames[i] * PAGE)) != MAP_FAILED);
    }
    if (++live > most) most = live;
    return base;
}

static int unmap(void *handle, void *at, size_t pages) {
    CHECK(handle == &file && live > 0);
    live--;
    return munmap(at, pages * PAGE);
}

/* struct xen_domctl_getdomaininfo, as far as it is read. */
static int list(void *control, uint32_t first, unsigned count, void *rows) {
    (void)control;
    CHECK(count == 1);
    if (first > 8 || gone || blind) return 0;
    uint32_t *words = rows;
    bool pv = first == 8;
    *(uint16_t *)rows = pv ? 8 : 7;
    words[1] = pv ? 0 : CA_XEN_HVM | 1u << 8;
    ((uint64_t *)rows)[1] = FRAMES;
    words[16] = 1;
    words[17] = 0;
    for (int i = 0; i < 16; i++) ((uint8_t *)rows)[76 + i] = (uint8_t)(0xa0 + i);
    return 1;
}

static int last(void *control, uint32_t domid, uint64_t *frame) {
    (void)control, (void)domid;
    if (blind) {
        errno = EACCES;
        return -1;
    }
    *frame = FRAMES - 1;
    return 0;
}

static int pause_one(void *control, uint32_t domid) {
    (void)control;
    if (domid != 7) {
        errno = ESRCH;
        return -1;
    }
    pauses++;
    return 0;
}

static int unpause_one(void *control, uint32_t domid) {
    (void)control, (void)domid;
    if (pauses == 0) {
        errno = EINVAL;
        return -1;
    }
    pauses--;
    return 0;
}

static int context(void *control, uint32_t domid, uint16_t type, uint16_t instance, void *out, uint32_t size) {
    (void)control, (void)domid;
    CHECK(type == 2);
    if (instance != 0) {
        errno = ENODATA;
        return -1;
    }
    /* Offsets counted by hand in xen/arch-x86/hvm/save.h. */
    CHECK(size >= 1000);
    uint8_t *bytes = out;
    uint64_t *at = (uint64_t *)(bytes + 512);
    at[7] = 0x7777;  /* rsp */
    at[16] = 0x1111; /* rip */
    at[20] = 0x3333; /* cr3 */
    memcpy(bytes + 512 + 28 * 8 + 64, &(uint32_t){4095}, 4); /* idtr_limit */
    at = (uint64_t *)(bytes + 512 + 28 * 8 + 64 + 8);
    at[4] = 0x4444; /* gs_base */
    at[8] = 0x8888; /* idtr_base */
    at = (uint64_t *)((uint8_t *)(at + 10) + 32);
    at[3] = 0x5555; /* shadow_gs */
    at[5] = 0x6666; /* lstar */
    at[9] = 0xd01;  /* efer */
    return 0;
}

static int version(void *control, int command, void *answer) {
    (void)control, (void)answer;
    CHECK_EQUAL(command, 0);
    errno = EPERM;
    return mute ? -1 : 4 << 16 | 17;
}
static const struct ca_xen fake = {.foreign_open = open_any,
                                   .foreign_close = close_any,
                                   .foreign_map = map,
                                   .foreign_unmap = unmap,
                                   .domain_list = list,
                                   .version = version,
                                   .last_frame = last,
                                   .domain_pause = pause_one,
                                   .domain_unpause = unpause_one,
                                   .hvm_context = context};

static uint64_t word_of(uint64_t address) { return address * 0x9e3779b97f4a7c15ull; }

static void fill(void) {
    file = memfd_create("domain", 0);
    CHECK(ftruncate(file, (off_t)FRAMES * PAGE) == 0);
    uint8_t *ram = mmap(NULL, (size_t)FRAMES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (uint64_t at = 0; at < (uint64_t)FRAMES * PAGE; at += 8) *(uint64_t *)(ram + at) = word_of(at);
    munmap(ram, (size_t)FRAMES * PAGE);
    /* A hole of whole runs, one of pages, and an end within a run. */
    for (unsigned i = 5 * 512; i < 9 * 512; i++) missing[i] = true;
    for (unsigned i = 10 * 512 + 3; i < 10 * 512 + 11; i++) missing[i] = true;
    for (unsigned i = 20 * 512 + 100; i < 21 * 512; i++) missing[i] = true;
}

static void evicts(void) {
    int32_t mem = ca_xen_open(7, 0, 2 * RUN);
    CHECK(mem > 0);
    CHECK_EQUAL(live, 0);
    CHECK_EQUAL(ca_mem_end(mem), (uint64_t)FRAMES * PAGE);
    most = 0;
    uint64_t seed = 1;
    for (int i = 0; i < 300; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        uint64_t at = (seed >> 33) % ((uint64_t)FRAMES * PAGE - 8) & ~7ull, value = 0;
        uint32_t reason = read_at(mem, 0, at, &value, 8, NULL);
        CHECK_EQUAL(reason, missing[at / PAGE] ? CA_F_OUTSIDE_RAM : CA_F_NONE);
        CHECK_EQUAL(value, missing[at / PAGE] ? 0 : word_of(at));
    }
    /* Two runs, and one page that is asked for again. */
    CHECK(most <= 3);
    /* Across the end of a run, and into a hole. */
    uint64_t both[2];
    struct fault_row fault;
    CHECK_EQUAL(read_at(mem, 0, 3 * RUN - 8, both, 16, NULL), 0);
    CHECK_EQUAL(both[1], word_of(3 * RUN));
    CHECK_EQUAL(read_at(mem, 0, 5 * RUN - 8, both, 16, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(fault.address, 5 * RUN);
    CHECK_EQUAL(read_at(mem, 0, (uint64_t)FRAMES * PAGE, both, 8, NULL), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    CHECK_EQUAL(live, 0);
}

static void maps_once(void) {
    int32_t mem = ca_xen_open(7, 0, 0);
    uint64_t counts[2], value;
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_OK);
    CHECK_EQUAL(counts[1], 0);
    unsigned before = calls;
    for (uint64_t page = 0; page < 512; page++) CHECK_EQUAL(read_at(mem, 0, RUN + page * PAGE, &value, 8, NULL), 0);
    CHECK_EQUAL(calls - before, 1);
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_OK);
    CHECK_EQUAL(counts[1], 512);
    ca_mem_close(mem);
}

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
        CHECK_EQUAL(matches, missing[at / PAGE] ? 0 : 1);
    }
    ca_mem_close(mem);
    CHECK_EQUAL(live, 0);
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
    unsigned before = calls;
    int32_t result = ca_search(mem, 0, UINT32_MAX, 0, 0, UINT64_MAX, &pattern, 1, RUN, 0x12340, 2, rows, 16, &cursor, status);
    CHECK_EQUAL(result, CA_OK);
    CHECK_EQUAL(status[0], 1);
    CHECK_EQUAL(rows[0], at);
    CHECK_EQUAL(calls - before, 2);
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
        wanted += !missing[place / PAGE] && (uint8_t)word == (uint8_t)word_of(0x12340);
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
    CHECK_EQUAL(live, 0);
}

/* Who is led into holes keeps what is mapped. */
static void keeps_through_holes(void) {
    int32_t mem = ca_xen_open(7, 0, 8 * RUN);
    const unsigned runs[] = {0, 1, 2, 3, 4, 9};
    uint64_t value;
    for (int i = 0; i < 6; i++) CHECK_EQUAL(read_at(mem, 0, runs[i] * (uint64_t)RUN, &value, 8, NULL), 0);
    for (uint64_t hole = 5; hole < 9; hole++) CHECK_EQUAL(read_at(mem, 0, hole * RUN, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    unsigned before = calls;
    for (int i = 0; i < 6; i++) CHECK_EQUAL(read_at(mem, 0, runs[i] * (uint64_t)RUN, &value, 8, NULL), 0);
    CHECK_EQUAL(calls - before, 0);
    ca_mem_close(mem);
    CHECK_EQUAL(live, 0);
}

static void comes_and_goes(void) {
    int32_t mem = ca_xen_open(7, 0, 0);
    uint64_t at = 10 * RUN + 5 * PAGE, value;
    CHECK_EQUAL(read_at(mem, 0, at, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    missing[at / PAGE] = false;
    CHECK_EQUAL(read_at(mem, 0, at, &value, 8, NULL), CA_F_NONE);
    CHECK_EQUAL(value, word_of(at));
    missing[at / PAGE] = true;
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_OK);
    CHECK_EQUAL(live, 0);
    CHECK_EQUAL(read_at(mem, 0, at, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    /* What is mapped when the domain goes can still be read; what is not is a fault, and then the source has gone. */
    CHECK_EQUAL(read_at(mem, 0, RUN, &value, 8, NULL), CA_F_NONE);
    gone = true;
    CHECK_EQUAL(read_at(mem, 0, RUN, &value, 8, NULL), CA_F_NONE);
    CHECK_EQUAL(read_at(mem, 0, 15 * RUN, &value, 8, NULL), CA_F_SOURCE);
    uint64_t counts[2];
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_E_SOURCE);
    ca_mem_close(mem);
    CHECK_EQUAL(live, 0);
    CHECK_EQUAL(ca_xen_open(7, 0, 0), CA_E_OPEN);
    gone = false;
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
    CHECK(live > 0);
    CHECK_EQUAL(ca_mem_revoke(mem), CA_OK);
    CHECK_EQUAL(live, 0);
    uint64_t counts[2];
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_E_REVOKED);
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_OK);
    CHECK_EQUAL(live, 0);
    ca_mem_close(mem);
}

/* A domain that Xen lets map the other, and ask nothing. */
static void is_direct(void) {
    uint64_t value;
    blind = true;
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
    CHECK(live > 0);
    /* Taken back: what was mapped goes, and stays away when the right comes again. */
    unmappable = true;
    CHECK_EQUAL(ca_xen_probe(mem), CA_E_REVOKED);
    CHECK_EQUAL(live, 0);
    CHECK_EQUAL(ca_xen_open(7, CA_XEN_DIRECT, 0), CA_E_UNSUPPORTED);
    unmappable = false;
    CHECK_EQUAL(ca_xen_probe(mem), CA_E_REVOKED);
    ca_mem_close(mem);
    /* A verb that meets the refusal ends the rest. */
    mem = ca_xen_open(7, CA_XEN_DIRECT, 0);
    CHECK_EQUAL(read_at(mem, 0, RUN, &value, 8, NULL), 0);
    unmappable = true;
    CHECK_EQUAL(read_at(mem, 0, 2 * RUN, &value, 8, NULL), CA_F_OUTSIDE_RAM);
    uint64_t counts[2];
    CHECK_EQUAL(ca_xen_counts(mem, counts), CA_E_REVOKED);
    CHECK_EQUAL(live, 0);
    ca_mem_close(mem);
    unmappable = blind = false;
    CHECK_EQUAL(ca_xen_probe(mem), CA_E_HANDLE);
}

static void describes(void) {
    uint64_t rows[3 * CA_XEN_DOMAIN_WORDS], vcpu[CA_XEN_VCPU_WORDS];
    CHECK_EQUAL(ca_xen_domains(0, rows, 3), 2);
    CHECK_EQUAL(ca_xen_version(), 4 << 16 | 17);
    mute = true;
    CHECK_EQUAL(ca_xen_version(), 0);
    mute = false;
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
    CHECK_EQUAL(pauses, 1);
    CHECK_EQUAL(ca_xen_pause(9), CA_E_OPEN);
    CHECK_EQUAL(ca_xen_unpause(7), CA_OK);
    CHECK_EQUAL(ca_xen_unpause(7), CA_E_SOURCE);
}

void test_xen(void) {
    ca_xen_use(&fake);
    fill();
    describes();
    evicts();
    maps_once();
    searches();
    searches_sparsely();
    keeps_through_holes();
    comes_and_goes();
    writes_and_revokes();
    is_direct();
    close(file);
    ca_xen_use(NULL);
}
