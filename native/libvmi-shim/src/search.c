/*
 * Multi-pattern search. Guest memory is copied page by page into a small buffer (it may change while we look, and a
 * view may fault); there each pattern is looked for with two of its bytes at once, 16 places a step, so that no single
 * common byte decides the speed. Matches are marked in a bitmap per pattern and given in the order of addresses.
 *
 * With a coarse alignment no page is copied: only the bytes at the places that count are looked at.
 */
#include <emmintrin.h>

#include "shim.h"

#define MAGIC 0x53524348u /* SRCH */
#define MAX_PATTERNS 16u
#define MAX_LENGTH 256u
/* From this alignment on, looking at each place is cheaper than going over all bytes. */
#define SPARSE 256u
/* One call looks at no more than 256 GiB of pages, mapped over and over or not. */
#define MAX_PAGES (1ull << 26)

struct pattern {
    uint32_t length, zero;
    uint8_t bytes[MAX_LENGTH];
};

struct prepared {
    const struct pattern *pattern;
    uint32_t one, two; /* offsets of the two bytes that are looked for first, the rarest of the pattern */
};

struct cursor {
    struct ca_cursor head;
    uint64_t at; /* first place not yet looked at */
    uint64_t emitted;
    uint64_t looked;
};

struct search {
    struct ca_mem *mem;
    uint64_t space, last;
    struct prepared prepared[MAX_PATTERNS];
    uint32_t patterns, longest, align, offset, limit, rows, row;
    uint64_t *out;
    struct cursor *cursor;
    uint32_t end;
};

/* How common a byte is in memory, coarsely: zero, then all ones, small numbers, text, code prefixes. */
static uint32_t commonness(uint8_t byte) {
    if (byte == 0) return 100;
    if (byte == 0xff) return 60;
    if (byte <= 0x10 || byte == 0x48) return 30;
    if (byte == 0x20 || (byte >= 'a' && byte <= 'z') || byte == 0x88 || byte == 0x8b) return 15;
    if (byte >= 0x20 && byte < 0x80) return 8;
    return 4;
}

static void prepare(struct prepared *prepared, const struct pattern *pattern) {
    uint32_t best = UINT32_MAX, second = UINT32_MAX;
    prepared->pattern = pattern;
    prepared->one = prepared->two = 0;
    for (uint32_t i = 0; i < pattern->length; i++) {
        uint32_t common = commonness(pattern->bytes[i]);
        if (common < best) {
            second = best;
            prepared->two = prepared->one;
            best = common;
            prepared->one = i;
        } else if (common < second) {
            second = common;
            prepared->two = i;
        }
    }
}

/* What looking at a group of matches at one place came to. */
enum group { GROUP_TAKEN, GROUP_NO_ROOM, GROUP_LIMIT };

/* All matches at one address go together, so that going on from `next` neither loses nor repeats one. */
static enum group take(struct search *s, uint64_t address, uint32_t mask) {
    uint32_t count = (uint32_t)__builtin_popcount(mask);
    uint64_t left = s->limit - s->cursor->emitted;
    bool cut = count > left;
    if (cut && s->cursor->emitted > 0) return GROUP_LIMIT;
    if ((cut ? left : count) > s->rows - s->row) return GROUP_NO_ROOM;
    for (uint32_t i = 0; i < s->patterns && s->cursor->emitted < s->limit; i++) {
        if ((mask & 1u << i) == 0) continue;
        s->out[2 * s->row] = address;
        s->out[2 * s->row + 1] = i;
        s->row++;
        s->cursor->emitted++;
    }
    if (!cut) return GROUP_TAKEN;
    /* More patterns match here than may be given at all: going on behind it is all that is left. */
    s->cursor->at = address + 1;
    return GROUP_LIMIT;
}

static void mark(const struct prepared *prepared, const uint8_t *buffer, uint32_t starts, uint64_t *bits) {
    const struct pattern *pattern = prepared->pattern;
    const uint8_t *one = buffer + prepared->one, *two = buffer + prepared->two;
    const __m128i first = _mm_set1_epi8((char)pattern->bytes[prepared->one]);
    const __m128i second = _mm_set1_epi8((char)pattern->bytes[prepared->two]);
    for (uint32_t i = 0; i < starts; i += 16) {
        __m128i both = _mm_and_si128(_mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)(one + i)), first),
                                     _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(const void *)(two + i)), second));
        uint32_t hits = (uint32_t)_mm_movemask_epi8(both);
        while (CA_UNLIKELY(hits != 0)) {
            uint32_t place = i + (uint32_t)__builtin_ctz(hits);
            hits &= hits - 1;
            if (place < starts && memcmp(buffer + place, pattern->bytes, pattern->length) == 0)
                bits[place >> 6] |= 1ull << (place & 63);
        }
    }
}

/* Matches that begin in `starts` bytes of buffer, of which `bytes` are readable. */
static enum group dense(struct search *s, const uint8_t *buffer, uint32_t starts, uint32_t bytes, uint64_t address) {
    uint64_t bits[MAX_PATTERNS][CA_PAGE / 64], any[CA_PAGE / 64];
    uint32_t words = (starts + 63) / 64;
    bool found = false;
    memset(any, 0, words * 8);
    for (uint32_t p = 0; p < s->patterns; p++) {
        uint32_t length = s->prepared[p].pattern->length;
        uint32_t places = bytes < length ? 0 : bytes - length + 1 < starts ? bytes - length + 1 : starts;
        memset(bits[p], 0, words * 8);
        mark(&s->prepared[p], buffer, places, bits[p]);
        for (uint32_t w = 0; w < words; w++) {
            any[w] |= bits[p][w];
            found |= bits[p][w] != 0;
        }
    }
    if (CA_LIKELY(!found)) return GROUP_TAKEN;
    for (uint32_t w = 0; w < words; w++) {
        while (any[w] != 0) {
            uint32_t place = w * 64 + (uint32_t)__builtin_ctzll(any[w]);
            any[w] &= any[w] - 1;
            if (((address + place) & (s->align - 1)) != s->offset) continue;
            uint32_t mask = 0;
            for (uint32_t p = 0; p < s->patterns; p++)
                if ((bits[p][place >> 6] >> (place & 63) & 1) != 0) mask |= 1u << p;
            s->cursor->at = address + place;
            enum group group = take(s, address + place, mask);
            if (group != GROUP_TAKEN) return group;
        }
    }
    return GROUP_TAKEN;
}

/* Only the bytes at one place. */
static enum group sparse(struct search *s, uint64_t address, uint64_t physical, uint32_t in_page) {
    uint8_t bytes[MAX_LENGTH];
    struct ca_fault fault;
    uint64_t word;
    uint32_t mask = 0;
    bool wide = in_page >= 8 && ca_phys_load64(s->mem, physical, &word) == CA_F_NONE;
    for (uint32_t p = 0; p < s->patterns; p++) {
        const struct pattern *pattern = s->prepared[p].pattern;
        uint32_t head = pattern->length < 8 ? pattern->length : 8;
        if (wide && memcmp(&word, pattern->bytes, head) != 0) continue;
        if (pattern->length - 1 > s->last - address) continue;
        if (ca_load(s->mem, s->space, address, bytes, pattern->length, &fault) &&
            memcmp(bytes, pattern->bytes, pattern->length) == 0)
            mask |= 1u << p;
    }
    return mask == 0 ? GROUP_TAKEN : take(s, address, mask);
}

/* The part of the page at cursor->at. `bytes` of it (at most to the range's end) lie at `physical`. */
static enum group look(struct search *s, uint64_t physical, uint32_t bytes) {
    uint64_t from = s->cursor->at;
    if (s->align >= SPARSE) {
        uint64_t skip = (s->offset - from) & (s->align - 1);
        for (; skip < bytes; skip += s->align) {
            s->cursor->at = from + skip;
            enum group group = sparse(s, from + skip, physical + skip, bytes - (uint32_t)skip);
            if (group != GROUP_TAKEN) return group;
        }
        return GROUP_TAKEN;
    }
    /* 16 bytes a step: zeros behind the end keep the steps inside the buffer. */
    uint8_t buffer[CA_PAGE + 2 * MAX_LENGTH + 16];
    uint64_t copied;
    uint32_t reason = ca_phys_read(s->mem, physical, buffer, bytes, &copied);
    uint32_t readable = (uint32_t)copied;
    if (reason == CA_F_NONE && s->longest > 1 && bytes - 1 < s->last - from) {
        uint64_t left = s->last - from - (bytes - 1);
        uint32_t ahead = left < s->longest - 1 ? (uint32_t)left : s->longest - 1;
        struct ca_mapping map;
        struct ca_fault fault;
        if (ca_translate(s->mem, s->space, from + bytes, &map, &fault)) {
            ca_phys_read(s->mem, map.physical, buffer + bytes, ahead, &copied);
            readable += (uint32_t)copied;
        }
    }
    memset(buffer + readable, 0, sizeof buffer - readable < MAX_LENGTH + 16 ? sizeof buffer - readable : MAX_LENGTH + 16);
    return dense(s, buffer, bytes < readable ? bytes : readable, readable, from);
}

/* No hypervisor maps less than this at a time to keep it: from here on, places are glanced at. */
#define APART (1u << 21)

static bool begins(const struct search *s, uint64_t word) {
    for (uint32_t p = 0; p < s->patterns; p++) {
        const struct pattern *pattern = s->prepared[p].pattern;
        if (memcmp(&word, pattern->bytes, pattern->length < 8 ? pattern->length : 8) == 0) return true;
    }
    return false;
}

/* Places in RAM that are far apart: only where the first bytes are right is a look taken as elsewhere. */
static int32_t run_apart(struct search *s, uint32_t budget_us) {
    struct cursor *c = s->cursor;
    struct ca_slice slice;
    ca_slice_start(&slice, budget_us);
    for (uint64_t skip = (s->offset - c->at) & (s->align - 1); skip <= s->last - c->at; skip = 0) {
        uint64_t places[CA_GLANCE], words[CA_GLANCE], next = c->at + skip;
        uint32_t count = s->mem->ops->glance(s->mem, &next, s->last, s->align, places, words);
        for (uint32_t i = 0; i < count; i++) {
            if (!begins(s, words[i])) continue;
            c->at = places[i];
            enum group group = sparse(s, places[i], places[i], 8);
            if (group == GROUP_NO_ROOM) return CA_MORE;
            if (group == GROUP_LIMIT) {
                s->end = CA_END_LIMIT;
                return CA_OK;
            }
        }
        if (next > s->last) break;
        c->at = next;
        c->looked += CA_GLANCE;
        if (c->looked >= MAX_PAGES) {
            s->end = CA_END_LIMIT;
            return CA_OK;
        }
        if (ca_slice_spent(&slice, s->mem, CA_GLANCE)) return CA_MORE;
    }
    s->end = CA_END_COMPLETE;
    return CA_OK;
}

static int32_t run(struct search *s, uint32_t budget_us) {
    struct cursor *c = s->cursor;
    struct ca_slice slice;
    ca_slice_start(&slice, budget_us);
    for (;;) {
        struct ca_mapping map;
        struct ca_fault fault;
        /* Pages without a place that counts are not even asked for: of each a hypervisor would have to map it. */
        uint64_t skip = s->align > CA_PAGE ? (s->offset - c->at) & (s->align - 1) : 0;
        if (skip > s->last - c->at) break;
        c->at += skip;
        uint64_t step = CA_PAGE - (c->at & (CA_PAGE - 1)), from = c->at;
        enum group group = GROUP_TAKEN;
        if (s->space == 0) {
            uint64_t next = s->mem->ops->next(s->mem, from);
            if (next > s->last) break;
            c->at = from = next;
            step = CA_PAGE - (from & (CA_PAGE - 1));
        }
        if (ca_translate(s->mem, s->space, from, &map, &fault)) {
            uint64_t bytes = step - 1 < s->last - from ? step : s->last - from + 1;
            group = look(s, map.physical, (uint32_t)bytes);
        } else {
            if (map.span == 0) break;
            step = map.span;
        }
        if (group == GROUP_NO_ROOM) return CA_MORE;
        if (group == GROUP_LIMIT) {
            s->end = CA_END_LIMIT;
            return CA_OK;
        }
        if (step - 1 >= s->last - from) break;
        c->at = from + step;
        if (++c->looked >= MAX_PAGES) {
            s->end = CA_END_LIMIT;
            return CA_OK;
        }
        if (ca_slice_spent(&slice, s->mem, s->align >= SPARSE ? 1 : 4 + s->patterns * 2)) return CA_MORE;
    }
    s->end = CA_END_COMPLETE;
    return CA_OK;
}

int32_t ca_search(int32_t handle, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t start, uint64_t last,
                  const void *patterns, uint32_t npatterns, uint32_t align, uint32_t offset, uint32_t limit, void *out,
                  uint32_t rows, void *cursor, void *status) {
    bool first;
    int32_t result = ca_cursor_open(cursor, MAGIC, &first);
    if (result != CA_OK) return result;
    if (patterns == NULL || npatterns == 0 || npatterns > MAX_PATTERNS || out == NULL || ((uintptr_t)out & 7) != 0 ||
        status == NULL || rows < MAX_PATTERNS || limit == 0 || start > last || !ca_space_valid(space) || align == 0 ||
        (align & (align - 1)) != 0 || offset >= align)
        return ca_fail(CA_E_ARGUMENT, "a buffer is missing, or range, alignment or pattern count are wrong");
    struct search s = {.space = space,
                       .last = last,
                       .patterns = npatterns,
                       .align = align,
                       .offset = offset,
                       .limit = limit,
                       .rows = rows,
                       .out = out,
                       .cursor = cursor};
    const struct pattern *table = patterns;
    for (uint32_t i = 0; i < npatterns; i++) {
        if (table[i].length == 0 || table[i].length > MAX_LENGTH)
            return ca_fail(CA_E_ARGUMENT, "pattern %u is empty or too long", i);
        prepare(&s.prepared[i], &table[i]);
        if (table[i].length > s.longest) s.longest = table[i].length;
    }
    if (first) s.cursor->at = start;
    if (s.cursor->at < start || s.cursor->at > last) return ca_fail(CA_E_CURSOR, "the cursor is damaged");

    result = ca_enter(handle, flags, &s.mem);
    if (result != CA_OK) return result;
    bool apart = space == 0 && align >= APART && s.mem->ops->glance != NULL && (offset & (CA_PAGE - 1)) <= CA_PAGE - 8;
    /* A breakpoint may lie at a place, which only at() hides. */
    result = apart && !ca_patched(s.mem) ? run_apart(&s, budget_us) : run(&s, budget_us);
    if (result == CA_OK) s.cursor->head.done = 1;
    uint64_t *words = status;
    words[0] = s.row;
    words[1] = s.end;
    words[2] = s.cursor->at;
    ca_leave(s.mem);
    return result;
}
