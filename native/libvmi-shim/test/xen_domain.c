#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "xen_domain.h"

struct xen_domain domain;

static void *open_any(void *logger, unsigned flags) {
    (void)logger, (void)flags;
    return &domain.file;
}

static int close_any(void *handle) {
    CHECK(handle == &domain.file);
    return 0;
}

static void *map(void *handle, uint32_t domid, int prot, size_t count, const uint64_t *frames, int *errors) {
    CHECK(handle == &domain.file && domid == 7);
    domain.calls++;
    if (domain.gone) {
        errno = ESRCH;
        return NULL;
    }
    if (domain.unmappable || (domain.blind && (prot & PROT_WRITE) != 0)) {
        /* As Linux reports what FLASK refuses: page by page. */
        for (size_t i = 0; i < count; i++) errors[i] = EACCES;
        domain.live++, domain.held += (unsigned)count;
        return mmap(NULL, count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    uint8_t *base = mmap(NULL, count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    for (size_t i = 0; i < count; i++) {
        errors[i] = frames[i] >= FRAMES || domain.missing[frames[i]] ? EINVAL : 0;
        if (errors[i] == 0)
            CHECK(mmap(base + i * PAGE, PAGE, prot, MAP_SHARED | MAP_FIXED, domain.file, (off_t)(frames[i] * PAGE)) != MAP_FAILED);
    }
    domain.live++, domain.held += (unsigned)count;
    if (domain.held > domain.most) domain.most = domain.held;
    return base;
}

static int unmap(void *handle, void *at, size_t count) {
    CHECK(handle == &domain.file && domain.live > 0 && domain.held >= count);
    domain.live--, domain.held -= (unsigned)count;
    if (domain.live == 0) CHECK_EQUAL(domain.held, 0);
    return munmap(at, count * PAGE);
}

/* struct xen_domctl_getdomaininfo, as far as it is read. */
static int list(void *control, uint32_t first, unsigned count, void *rows) {
    (void)control;
    CHECK(count == 1);
    if (first > 8 || domain.gone || domain.blind) return 0;
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
    if (domain.blind) {
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
    domain.pauses++;
    return 0;
}

static int unpause_one(void *control, uint32_t domid) {
    (void)control, (void)domid;
    if (domain.pauses == 0) {
        errno = EINVAL;
        return -1;
    }
    domain.pauses--;
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
    return domain.mute ? -1 : 4 << 16 | 17;
}

const struct ca_xen domain_xen = {.foreign_open = open_any,
                                   .foreign_close = close_any,
                                   .foreign_map = map,
                                   .foreign_unmap = unmap,
                                   .domain_list = list,
                                   .version = version,
                                   .last_frame = last,
                                   .domain_pause = pause_one,
                                   .domain_unpause = unpause_one,
                                   .hvm_context = context};

uint64_t word_of(uint64_t address) { return address * 0x9e3779b97f4a7c15ull; }

void domain_fill(void) {
    domain.file = memfd_create("domain", 0);
    CHECK(ftruncate(domain.file, (off_t)FRAMES * PAGE) == 0);
    uint8_t *ram = mmap(NULL, (size_t)FRAMES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, domain.file, 0);
    for (uint64_t at = 0; at < (uint64_t)FRAMES * PAGE; at += 8) *(uint64_t *)(ram + at) = word_of(at);
    munmap(ram, (size_t)FRAMES * PAGE);
    /* A hole of whole runs, one of pages, and an end within a run. */
    for (unsigned i = 5 * 512; i < 9 * 512; i++) domain.missing[i] = true;
    for (unsigned i = 10 * 512 + 3; i < 10 * 512 + 11; i++) domain.missing[i] = true;
    for (unsigned i = 20 * 512 + 100; i < 21 * 512; i++) domain.missing[i] = true;
}
