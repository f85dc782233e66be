/* x86-64 page walk, 4 and 5 levels. Intel SDM vol. 3A, 4.5 (tables 4-14 to 4-20). */
#include "shim.h"

#define PRESENT (1ull << 0)
#define WRITABLE (1ull << 1)
#define USER (1ull << 2)
#define LARGE (1ull << 7) /* PS; reserved in levels 4 and 5 */
#define NO_EXECUTE (1ull << 63)
#define ADDRESS CA_SPACE_ROOT
#define ALL_FLAGS (CA_PAGE_WRITE | CA_PAGE_USER | CA_PAGE_EXECUTE)

bool ca_space_valid(uint64_t space) {
    if (space == 0) return true;
    uint64_t levels = space & 0xfff;
    return (space & ~(CA_SPACE_ROOT | 0xfff)) == 0 && (levels == 4 || levels == 5);
}

static uint32_t narrow(uint32_t flags, uint64_t entry) {
    if ((entry & WRITABLE) == 0) flags &= ~(uint32_t)CA_PAGE_WRITE;
    if ((entry & USER) == 0) flags &= ~(uint32_t)CA_PAGE_USER;
    if ((entry & NO_EXECUTE) != 0) flags &= ~(uint32_t)CA_PAGE_EXECUTE;
    return flags;
}

static bool fail(struct ca_mapping *map, struct ca_fault *fault, uint64_t va, uint32_t level, uint64_t entry,
                 uint32_t reason) {
    /* What is missing reaches to the end of the part this entry maps; for a table, of what the table maps. */
    uint32_t shift = 12 + 9 * (level > 0 ? level - 1 : 0);
    map->span = (((va >> shift) + 1) << shift) - va;
    *fault = (struct ca_fault){va, entry, reason, level};
    return false;
}

/* The last level, never cached: a 4 KiB page of a known table. */
static inline bool leaf(struct ca_mem *mem, uint64_t va, uint64_t table, uint64_t above, uint32_t flags,
                        struct ca_mapping *map, struct ca_fault *fault) {
    uint64_t entry = 0;
    uint32_t reason = ca_phys_load64(mem, table + ((va >> 12) & 511) * 8, &entry);
    if (CA_UNLIKELY(reason != CA_F_NONE)) {
        fail(map, fault, va, 1, above, reason);
        map->span = ((va >> 21) + 1) * (1ull << 21) - va;
        return false;
    }
    if ((entry & PRESENT) == 0) return fail(map, fault, va, 1, entry, CA_F_NOT_PRESENT);
    map->physical = (entry & ADDRESS) | (va & 0xfff);
    map->span = 0x1000 - (va & 0xfff);
    map->entry = entry;
    map->flags = narrow(flags, entry);
    return true;
}

static inline bool large_page(uint64_t va, uint64_t base, uint64_t entry, uint32_t level, uint32_t flags,
                              struct ca_mapping *map) {
    uint64_t in = va & ((1ull << (12 + 9 * (level - 1))) - 1);
    map->physical = base + (va & 0x1fffff);
    map->span = (1ull << (12 + 9 * (level - 1))) - in;
    map->entry = entry;
    map->flags = flags;
    return true;
}

bool ca_translate(struct ca_mem *mem, uint64_t space, uint64_t va, struct ca_mapping *map, struct ca_fault *fault) {
    if (space == 0) {
        *map = (struct ca_mapping){va, 0, 0 - va, 0};
        return true;
    }
    uint32_t levels = space & 7;
    uint32_t unused = 64 - (12 + 9 * levels);
    if (CA_UNLIKELY((uint64_t)((int64_t)(va << unused) >> unused) != va)) {
        *fault = (struct ca_fault){va, 0, CA_F_NON_CANONICAL, levels};
        /* To the first canonical address of the upper half. */
        map->span = ~0ull << (63 - unused);
        map->span -= va;
        return false;
    }

    uint64_t region = va >> 21;
    struct ca_cached *cached = &mem->cache[(region ^ (region >> 10) ^ (space >> 12)) & (CA_CACHE_SLOTS - 1)];
    if (cached->generation == mem->generation && cached->region == region && cached->space == space) {
        if (cached->large == 0) return leaf(mem, va, cached->base, cached->entry, cached->flags, map, fault);
        return large_page(va, cached->base, cached->entry, cached->large, cached->flags, map);
    }

    uint64_t table = space & ADDRESS, above = 0;
    uint32_t flags = ALL_FLAGS;
    for (uint32_t level = levels; level > 1; level--) {
        uint32_t shift = 12 + 9 * (level - 1);
        uint64_t entry = 0;
        uint32_t reason = ca_phys_load64(mem, table + ((va >> shift) & 511) * 8, &entry);
        if (CA_UNLIKELY(reason != CA_F_NONE)) {
            fail(map, fault, va, level, above, reason);
            /* The whole table is missing, unless the file ends inside it. */
            if (level < levels) map->span = (((va >> (shift + 9)) + 1) << (shift + 9)) - va;
            return false;
        }
        if ((entry & PRESENT) == 0) return fail(map, fault, va, level, entry, CA_F_NOT_PRESENT);
        if ((entry & LARGE) != 0) {
            /* Bits between PAT (12) and the page's address are reserved. */
            uint64_t reserved = ((1ull << shift) - 1) & ~0x1fffull;
            if (level > 3 || (entry & reserved) != 0) return fail(map, fault, va, level, entry, CA_F_RESERVED_BIT);
            uint64_t base = (entry & ADDRESS & ~((1ull << shift) - 1)) + (va & ((1ull << shift) - 1) & ~0x1fffffull);
            flags = narrow(flags, entry);
            *cached = (struct ca_cached){space, region, base, entry, mem->generation, (uint8_t)flags, (uint8_t)level};
            return large_page(va, base, entry, level, flags, map);
        }
        flags = narrow(flags, entry);
        table = entry & ADDRESS;
        above = entry;
    }
    *cached = (struct ca_cached){space, region, table, above, mem->generation, (uint8_t)flags, 0};
    return leaf(mem, va, table, above, flags, map, fault);
}

bool ca_load(struct ca_mem *mem, uint64_t space, uint64_t va, void *to, uint64_t bytes, struct ca_fault *fault) {
    uint64_t done = 0;
    while (done < bytes) {
        struct ca_mapping map;
        uint64_t at = va + done;
        if (CA_UNLIKELY(at < va)) {
            *fault = (struct ca_fault){at, 0, space == 0 ? CA_F_OUTSIDE_RAM : CA_F_NON_CANONICAL, (uint32_t)(space & 7)};
            return false;
        }
        if (!ca_translate(mem, space, at, &map, fault)) return false;
        uint64_t part = bytes - done;
        if (map.span != 0 && map.span < part) part = map.span;
        uint64_t copied;
        uint32_t reason = ca_phys_read(mem, map.physical, (uint8_t *)to + done, part, &copied);
        if (CA_UNLIKELY(reason != CA_F_NONE)) {
            *fault = (struct ca_fault){at + copied, map.entry, reason, 0};
            return false;
        }
        done += part;
    }
    return true;
}

bool ca_load64(struct ca_mem *mem, uint64_t space, uint64_t va, uint64_t *value, struct ca_fault *fault) {
    struct ca_mapping map;
    if (CA_UNLIKELY((va & 0xfff) > 0xff8)) return ca_load(mem, space, va, value, 8, fault);
    if (!ca_translate(mem, space, va, &map, fault)) return false;
    uint32_t reason = ca_phys_load64(mem, map.physical, value);
    if (CA_LIKELY(reason == CA_F_NONE)) return true;
    *fault = (struct ca_fault){va, map.entry, reason, 0};
    return false;
}
