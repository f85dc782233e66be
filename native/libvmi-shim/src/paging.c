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
static inline bool leaf(struct ca_mem *mem, uint64_t va, const struct ca_cached *above, struct ca_mapping *map,
                        struct ca_fault *fault) {
    uint64_t entry = 0;
    uint32_t reason = ca_phys_load64(mem, above->base + ((va >> 12) & 511) * 8, &entry);
    if (CA_UNLIKELY(reason != CA_F_NONE)) {
        fail(map, fault, va, 1, above->entry, reason);
        map->span = ((va >> 21) + 1) * (1ull << 21) - va;
        return false;
    }
    if ((entry & PRESENT) == 0) return fail(map, fault, va, 1, entry, CA_F_NOT_PRESENT);
    map->physical = (entry & ADDRESS) | (va & 0xfff);
    map->span = 0x1000 - (va & 0xfff);
    map->entry = entry;
    map->flags = narrow(above->flags, entry);
    return true;
}

static bool canonical(uint64_t space, uint64_t va) {
    uint32_t unused = 64 - (12 + 9 * (uint32_t)(space & 7));
    return (uint64_t)((int64_t)(va << unused) >> unused) == va;
}

/* All levels but the last: reads them into `cached`, or gives NULL with map->span and *fault set. */
static __attribute__((noinline)) const struct ca_cached *descend(struct ca_mem *mem, uint64_t space, uint64_t va,
                                                                 struct ca_cached *cached, struct ca_mapping *map,
                                                                 struct ca_fault *fault) {
    uint32_t levels = space & 7;
    const uint64_t region = va >> 21;
    if (CA_UNLIKELY(!canonical(space, va))) {
        *fault = (struct ca_fault){va, 0, CA_F_NON_CANONICAL, levels};
        /* To the first canonical address of the upper half. */
        map->span = (~0ull << (11 + 9 * levels)) - va;
        return NULL;
    }
    uint64_t table = space & ADDRESS, above = 0;
    uint32_t flags = ALL_FLAGS;
    for (uint32_t level = levels; level > 1; level--) {
        uint32_t shift = 12 + 9 * (level - 1);
        uint64_t entry = 0;
        uint32_t reason = ca_phys_load64(mem, table + ((va >> shift) & 511) * 8, &entry);
        if (CA_UNLIKELY(reason != CA_F_NONE)) {
            fail(map, fault, va, level, above, reason);
            /* What follows in the same table is missing too. */
            if (level < levels) map->span = (((va >> (shift + 9)) + 1) << (shift + 9)) - va;
            return NULL;
        }
        if ((entry & PRESENT) == 0) {
            fail(map, fault, va, level, entry, CA_F_NOT_PRESENT);
            return NULL;
        }
        flags = narrow(flags, entry);
        if ((entry & LARGE) != 0) {
            /* Bits between PAT (12) and the page's address are reserved. */
            uint64_t in_page = (1ull << shift) - 1;
            if (level > 3 || (entry & in_page & ~0x1fffull) != 0) {
                fail(map, fault, va, level, entry, CA_F_RESERVED_BIT);
                return NULL;
            }
            uint64_t base = (entry & ADDRESS & ~in_page) + (va & in_page & ~0x1fffffull);
            *cached = (struct ca_cached){space, region, base, entry, mem->generation, (uint8_t)flags, (uint8_t)level};
            return cached;
        }
        table = entry & ADDRESS;
        above = entry;
    }
    *cached = (struct ca_cached){space, region, table, above, mem->generation, (uint8_t)flags, 0};
    return cached;
}

/* The same from the cache, if it is there. What is there is canonical, which the bits of the region tell. */
static inline const struct ca_cached *upper(struct ca_mem *mem, uint64_t space, uint64_t va, struct ca_mapping *map,
                                            struct ca_fault *fault) {
    const uint64_t region = va >> 21;
    struct ca_cached *cached = &mem->cache[(region ^ (region >> 10) ^ (space >> 12)) & (CA_CACHE_SLOTS - 1)];
    if (CA_LIKELY(cached->region == region && cached->space == space && cached->generation == mem->generation)) return cached;
    return descend(mem, space, va, cached, map, fault);
}

bool ca_translate(struct ca_mem *mem, uint64_t space, uint64_t va, struct ca_mapping *map, struct ca_fault *fault) {
    if (space == 0) {
        *map = (struct ca_mapping){va, 0, 0 - va, 0};
        return true;
    }
    const struct ca_cached *above = upper(mem, space, va, map, fault);
    if (CA_UNLIKELY(above == NULL)) return false;
    if (above->large == 0) return leaf(mem, va, above, map, fault);
    uint64_t page = 1ull << (12 + 9 * (above->large - 1));
    map->physical = above->base + (va & 0x1fffff);
    map->span = page - (va & (page - 1));
    map->entry = above->entry;
    map->flags = above->flags;
    return true;
}

static void ready(struct ca_mem *mem, const uint64_t *gpas, uint32_t count, uint64_t bytes, const uint8_t **hosts) {
    if (mem->ops->ready != NULL) {
        mem->ops->ready(mem, gpas, count, hosts);
        return;
    }
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *host;
        uint64_t there;
        bool found = gpas[i] != CA_NOWHERE && mem->ops->at(mem, gpas[i], &host, &there) == CA_F_NONE && there >= bytes;
        hosts[i] = found ? host : NULL;
    }
}

/* Nothing but the prefetches, so that as many as the processor holds are under way together. Of NULL it does nothing. */
static void prefetch(const uint8_t *const *hosts, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) __builtin_prefetch(hosts[i]);
}

void ca_locate(struct ca_mem *mem, uint64_t space, const uint64_t *addresses, uint32_t count, uint64_t length,
               const uint8_t **hosts) {
    uint64_t data[CA_GROUP];   /* where the bytes are, once that is known */
    uint64_t tables[CA_GROUP]; /* where the last level's entry is, if it says so */
    bool walks = false;
    if (count == 0) return;
    /* First all that may have work to do, which may move what was ready. */
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t va = addresses[i];
        tables[i] = data[i] = CA_NOWHERE;
        if ((va & 0xfff) + length > CA_PAGE) continue;
        if (space == 0) {
            data[i] = va;
            continue;
        }
        struct ca_mapping map;
        struct ca_fault fault;
        const struct ca_cached *above = upper(mem, space, va, &map, &fault);
        if (above == NULL) continue;
        if (above->large != 0) {
            data[i] = above->base + (va & 0x1fffff);
            continue;
        }
        tables[i] = above->base + ((va >> 12) & 511) * 8;
        walks = true;
    }
    if (walks) {
        ready(mem, tables, count, 8, hosts);
        prefetch(hosts, count);
        for (uint32_t i = 0; i < count; i++) {
            uint64_t entry;
            if (hosts[i] != NULL && ca_guard_load64(&entry, hosts[i]) == 0 && (entry & PRESENT) != 0)
                data[i] = (entry & ADDRESS) | (addresses[i] & 0xfff);
        }
    }
    ready(mem, data, count, length, hosts);
    /* Of more than a few lines the processor sees by itself what comes next. */
    if (length <= 256) prefetch(hosts, count);
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
