#define _GNU_SOURCE
#include "guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cloudapp.h"

int guest_new(uint8_t **ram) {
    int fd = memfd_create("guest", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, GUEST_SIZE) != 0) abort();
    *ram = mmap(NULL, GUEST_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (*ram == MAP_FAILED) abort();
    guest_fill(*ram);
    return fd;
}

int32_t guest_open(int fd, uint32_t flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return ca_mem_open_file(path, NULL, 0, flags);
}

void guest_put(uint8_t *ram, uint64_t pa, uint64_t value) { memcpy(ram + pa, &value, 8); }

static uint64_t get(const uint8_t *ram, uint64_t pa) {
    uint64_t value;
    memcpy(&value, ram + pa, 8);
    return value;
}

static uint64_t next_table;

static void map(uint8_t *ram, uint64_t root, unsigned levels, unsigned level, uint64_t va, uint64_t entry) {
    uint64_t table = root;
    for (unsigned at = levels;; at--) {
        uint64_t slot = table + ((va >> (12 + 9 * (at - 1))) & 511) * 8;
        if (at == level) {
            guest_put(ram, slot, entry);
            return;
        }
        if ((get(ram, slot) & ENTRY_PRESENT) == 0) {
            guest_put(ram, slot, next_table | ENTRY_PRESENT | ENTRY_WRITE);
            next_table += 4096;
        }
        table = get(ram, slot) & 0xffffffffff000ull;
    }
}

static uint64_t element(unsigned i) { return VIRT(AT_ELEMENTS + i * 64u); }

static uint64_t tree(uint8_t *ram, unsigned from, unsigned to) {
    if (from >= to) return 0;
    unsigned middle = (from + to) / 2;
    uint64_t node = element(middle) + 16;
    guest_put(ram, node - VA_DIRECT + 8, tree(ram, middle + 1, to));
    guest_put(ram, node - VA_DIRECT + 16, tree(ram, from, middle));
    return node;
}

void guest_fill(uint8_t *ram) {
    memset(ram, 0, GUEST_SIZE);
    next_table = 3 * 4096;
    for (unsigned levels = 4; levels <= 5; levels++) {
        uint64_t root = levels == 4 ? ROOT4 : ROOT5;
        for (uint64_t pa = 0; pa < GUEST_SIZE; pa += 4096)
            map(ram, root, levels, 1, VIRT(pa), pa | ENTRY_PRESENT | ENTRY_WRITE | ENTRY_NX);
        map(ram, root, levels, 2, VA_LARGE, ENTRY_PRESENT | ENTRY_LARGE);
        map(ram, root, levels, 3, VA_HUGE, ENTRY_PRESENT | ENTRY_LARGE | ENTRY_USER);
        next_table = 11 * 4096; /* pages 8 to 10 hold the structures */
    }
    for (unsigned i = 0; i < 512; i++) guest_put(ram, ROOT_MAZE + i * 8, ROOT_MAZE | ENTRY_PRESENT | ENTRY_WRITE);

    for (unsigned i = 0; i < ELEMENTS; i++) guest_put(ram, AT_ELEMENTS + i * 64u, 100 + i);
    /* Elements 0..7 list, 8..11 hlist, 12..17 hash chains of two, 18..28 tree; pointers to all of them. */
    uint64_t link = AT_LIST;
    for (unsigned i = 0; i < 8; i++) {
        guest_put(ram, link, element(i) + 16);
        link = element(i) + 16 - VA_DIRECT;
    }
    guest_put(ram, link, VIRT(AT_LIST));
    link = AT_HLIST;
    for (unsigned i = 8; i < 12; i++) {
        guest_put(ram, link, element(i) + 16);
        link = element(i) + 16 - VA_DIRECT;
    }
    for (unsigned i = 0; i < 3; i++) {
        guest_put(ram, AT_HASH + i * 16, element(12 + 2 * i) + 16);
        guest_put(ram, element(12 + 2 * i) + 16 - VA_DIRECT, element(13 + 2 * i) + 16);
    }
    guest_put(ram, AT_RBTREE, tree(ram, 18, 29));
    guest_put(ram, AT_XARRAY, VIRT(AT_NODES) | 2);
    ram[AT_NODES + XA_SHIFT] = 4;
    for (unsigned i = 0; i < 3; i++) {
        uint64_t node = AT_NODES + 256 * (i + 1);
        guest_put(ram, AT_NODES + XA_SLOTS + i * 40, VIRT(node) | 2);
        for (unsigned slot = 0; slot < 16; slot += 3) guest_put(ram, node + XA_SLOTS + slot * 8, element(i * 6 + slot / 3));
    }
    for (unsigned i = 0; i < ELEMENTS; i++) guest_put(ram, AT_POINTERS + i * 8, i % 5 == 4 ? 0 : element(i));
    memcpy(ram + 20 * 4096 + 100, "needle-one", 10);
    memcpy(ram + 21 * 4096 - 4, "needle-two", 10);
}
