/*
 * Programs are data of a client that may be hostile, evaluated while a vCPU waits: there are no loops in them, every table
 * has a fixed size, and what is read from the guest is at most 64 + 16 * 4 places of at most 256 bytes.
 */
#include "events_program.h"

#define CR0_PG (1ull << 31)
#define CR4_LA57 (1ull << 12)
#define EFER_LMA (1ull << 10)
#define RATE_MAX 1000000000ull
#define UNIT 1000000000ull

static int32_t refuse(const char *what, uint64_t value) {
    return ca_fail(CA_E_ARGUMENT, "event program: %s (%llu)", what, (unsigned long long)value);
}

static bool field_valid(uint32_t trap, uint64_t field) {
    switch (field) {
    case CA_FIELD_NEW_VALUE:
    case CA_FIELD_OLD_VALUE: return trap == CA_TRAP_REGISTER || trap == CA_TRAP_MSR;
    case CA_FIELD_LEAF:
    case CA_FIELD_SUBLEAF: return trap == CA_TRAP_CPUID;
    case CA_FIELD_DESCRIPTOR:
    case CA_FIELD_IS_WRITE: return trap == CA_TRAP_DESCRIPTOR;
    default: return false;
    }
}

static int32_t parse_trap(const uint64_t *head) {
    uint64_t argument = head[CA_PROGRAM_ARGUMENT], space = head[CA_PROGRAM_SPACE], flags = head[CA_PROGRAM_FLAGS];
    switch (head[CA_PROGRAM_TRAP]) {
    case CA_TRAP_REGISTER:
        if (argument != 0 && argument != 3 && argument != 4) return refuse("no writes to this register can be trapped", argument);
        break;
    case CA_TRAP_MSR:
        if (argument > UINT32_MAX) return refuse("no MSR has this number", argument);
        break;
    case CA_TRAP_BREAKPOINT:
        if (!ca_space_valid(space) || space == 0) return refuse("a breakpoint needs an address space", space);
        break;
    case CA_TRAP_CPUID:
    case CA_TRAP_DESCRIPTOR:
    case CA_TRAP_GUEST_REQUEST:
        if (argument != 0) return refuse("this trap has no argument", argument);
        break;
    default: return refuse("unknown trap", head[CA_PROGRAM_TRAP]);
    }
    if (space != 0 && head[CA_PROGRAM_TRAP] != CA_TRAP_BREAKPOINT) return refuse("only a breakpoint lies in an address space", space);
    if ((flags & ~(uint64_t)CA_PROGRAM_ON_CHANGE) != 0 || (flags != 0 && head[CA_PROGRAM_TRAP] != CA_TRAP_REGISTER))
        return refuse("unknown flags, or not of this trap", flags);
    return CA_OK;
}

static int32_t parse_predicate(struct ca_program_data *p, const uint64_t *words) {
    uint32_t depth = 0;
    for (uint32_t i = 0; i < p->operations; i++) {
        uint64_t code = words[2 * i], operand = words[2 * i + 1];
        uint32_t takes = 0;
        switch (code) {
        case CA_OP_CONSTANT: break;
        case CA_OP_REGISTER:
            if (operand > CA_REG_LAST) return refuse("unknown register", operand);
            break;
        case CA_OP_FIELD:
            if (!field_valid(p->trap, operand)) return refuse("unknown field, or not of this trap", operand);
            break;
        case CA_OP_LOAD:
            takes = 1;
            if (operand != 1 && operand != 2 && operand != 4 && operand != 8) return refuse("loads are of 1, 2, 4 or 8 bytes", operand);
            break;
        case CA_OP_NOT: takes = 1; break;
        default:
            if (code < CA_OP_ADD || code > CA_OP_LESS) return refuse("unknown operation", code);
            takes = 2;
        }
        if (depth < takes) return refuse("the predicate takes more than there is on its stack, at operation", i);
        depth = depth - takes + 1;
        if (depth > CA_STACK_MAX) return refuse("the predicate needs more stack than there is, at operation", i);
        p->operation[i].code = (uint32_t)code;
        p->operation[i].operand = operand;
    }
    if (p->operations != 0 && depth != 1) return refuse("the predicate must leave one word, it leaves", depth);
    return CA_OK;
}

static int32_t parse_capture(struct ca_program_data *p, uint32_t i, const uint64_t *words) {
    uint64_t kind = words[0], from = words[1], bytes = words[2], hops = words[3];
    if (kind == CA_CAPTURE_REGISTER || kind == CA_CAPTURE_FIELD) {
        if (kind == CA_CAPTURE_REGISTER ? from > CA_REG_LAST : !field_valid(p->trap, from))
            return refuse("unknown register or field in a capture", from);
        if ((bytes != 0 && bytes != 8) || hops != 0) return refuse("a register or field is one word and has no hops", bytes);
        p->bytes += 8;
    } else if (kind == CA_CAPTURE_MEMORY || kind == CA_CAPTURE_STRING) {
        if (from > CA_REG_LAST) return refuse("unknown register in a capture", from);
        if (bytes == 0 || bytes > CA_CAPTURE_BYTES_MAX) return refuse("a capture has 1 to 256 bytes", bytes);
        if (hops > CA_HOPS_MAX) return refuse("a capture has at most 3 hops", hops);
        p->bytes += 8 + ((uint32_t)bytes + 7) / 8 * 8;
    } else {
        return refuse("unknown kind of capture", kind);
    }
    p->capture[i].kind = (uint32_t)kind;
    p->capture[i].from = (uint32_t)from;
    p->capture[i].bytes = (uint32_t)bytes;
    p->capture[i].hops = (uint32_t)hops;
    memcpy(p->capture[i].offset, words + 4, sizeof p->capture[i].offset);
    return CA_OK;
}

int32_t ca_program_parse(struct ca_program_data *p, const void *from, uint32_t size) {
    uint64_t words[CA_PROGRAM_WORDS + 2 * CA_PREDICATE_MAX + CA_CAPTURE_WORDS * CA_CAPTURES_MAX];
    if (size < CA_PROGRAM_WORDS * 8 || size > sizeof words || size % 8 != 0) return refuse("its length is wrong", size);
    memcpy(words, from, size);
    if (words[CA_PROGRAM_VERSION] != CA_EVENTS_VERSION) return refuse("its version is not known", words[CA_PROGRAM_VERSION]);
    int32_t result = parse_trap(words);
    if (result != CA_OK) return result;
    if (words[CA_PROGRAM_PREDICATE] > CA_PREDICATE_MAX) return refuse("a predicate has at most 64 operations", words[CA_PROGRAM_PREDICATE]);
    if (words[CA_PROGRAM_CAPTURES] > CA_CAPTURES_MAX) return refuse("there are at most 16 captures", words[CA_PROGRAM_CAPTURES]);
    if (words[CA_PROGRAM_RATE] > RATE_MAX) return refuse("the rate is at most 1000000000 a second", words[CA_PROGRAM_RATE]);
    *p = (struct ca_program_data){.trap = (uint32_t)words[CA_PROGRAM_TRAP],
                                  .flags = (uint32_t)words[CA_PROGRAM_FLAGS],
                                  .operations = (uint32_t)words[CA_PROGRAM_PREDICATE],
                                  .captures = (uint32_t)words[CA_PROGRAM_CAPTURES],
                                  .bytes = CA_RECORD_WORDS * 8,
                                  .argument = words[CA_PROGRAM_ARGUMENT],
                                  .space = words[CA_PROGRAM_SPACE],
                                  .rate = words[CA_PROGRAM_RATE]};
    if (size != 8 * (CA_PROGRAM_WORDS + 2 * p->operations + CA_CAPTURE_WORDS * p->captures))
        return refuse("its length is not that of its parts", size);
    const uint64_t *at = words + CA_PROGRAM_WORDS;
    result = parse_predicate(p, at);
    at += 2 * p->operations;
    for (uint32_t i = 0; i < p->captures && result == CA_OK; i++, at += CA_CAPTURE_WORDS) result = parse_capture(p, i, at);
    return result;
}

bool ca_event_space(const struct ca_event *event, uint64_t *space) {
    const uint64_t *r = event->registers;
    *space = 0;
    if ((r[CA_REG_CR0] & CR0_PG) == 0) return true;
    *space = (r[CA_REG_CR3] & CA_SPACE_ROOT) | ((r[CA_REG_CR4] & CR4_LA57) != 0 ? 5 : 4);
    return (r[CA_REG_EFER] & EFER_LMA) != 0;
}

/* As much of [va, va + bytes) as there is, by pages; the reason if it is not all. */
static uint32_t load(const struct ca_event *event, struct ca_mem *mem, uint64_t va, uint8_t *to, uint32_t bytes,
                     uint32_t *done) {
    uint64_t space;
    *done = 0;
    if (mem == NULL || !ca_event_space(event, &space)) return CA_F_SOURCE;
    while (*done < bytes) {
        uint32_t part = CA_PAGE - (uint32_t)((va + *done) & (CA_PAGE - 1));
        struct ca_fault fault;
        if (part > bytes - *done) part = bytes - *done;
        if (va + *done < va) return CA_F_NON_CANONICAL;
        if (!ca_load(mem, space, va + *done, to + *done, part, &fault)) return fault.reason;
        *done += part;
    }
    return CA_F_NONE;
}

bool ca_program_matches(const struct ca_program_data *p, const struct ca_event *event, struct ca_mem *mem) {
    uint64_t stack[CA_STACK_MAX + 1] = {0};
    uint32_t depth = 0;
    if (p->operations == 0) return true;
    for (uint32_t i = 0; i < p->operations; i++) {
        uint64_t operand = p->operation[i].operand, value = 0;
        uint32_t code = p->operation[i].code, done;
        if (code >= CA_OP_ADD && code <= CA_OP_LESS) {
            uint64_t right = stack[--depth], left = stack[--depth];
            switch (code) {
            case CA_OP_ADD: value = left + right; break;
            case CA_OP_SUBTRACT: value = left - right; break;
            case CA_OP_AND: value = left & right; break;
            case CA_OP_OR: value = left | right; break;
            case CA_OP_XOR: value = left ^ right; break;
            case CA_OP_SHIFT_LEFT: value = right < 64 ? left << right : 0; break;
            case CA_OP_SHIFT_RIGHT: value = right < 64 ? left >> right : 0; break;
            case CA_OP_EQUAL: value = left == right; break;
            case CA_OP_LESS: value = left < right; break;
            }
        } else {
            switch (code) {
            case CA_OP_CONSTANT: value = operand; break;
            case CA_OP_REGISTER: value = event->registers[operand]; break;
            case CA_OP_FIELD: value = event->fields[operand]; break;
            case CA_OP_LOAD:
                if (load(event, mem, stack[--depth], (uint8_t *)&value, (uint32_t)operand, &done) != CA_F_NONE) return false;
                break;
            case CA_OP_NOT: value = stack[--depth] == 0; break;
            }
        }
        stack[depth++] = value;
    }
    return stack[0] != 0;
}

static uint32_t address_of(const struct ca_program_data *p, uint32_t i, const struct ca_event *event, struct ca_mem *mem,
                           uint64_t *at) {
    *at = event->registers[p->capture[i].from] + p->capture[i].offset[0];
    for (uint32_t hop = 1; hop <= p->capture[i].hops; hop++) {
        uint64_t pointer;
        uint32_t done, reason = load(event, mem, *at, (uint8_t *)&pointer, 8, &done);
        if (reason != CA_F_NONE) return reason;
        *at = pointer + p->capture[i].offset[hop];
    }
    return CA_F_NONE;
}

void ca_program_capture(const struct ca_program_data *p, const struct ca_event *event, struct ca_mem *mem, uint64_t *to) {
    for (uint32_t i = 0; i < p->captures; i++) {
        uint32_t kind = p->capture[i].kind, bytes = p->capture[i].bytes, head[2] = {0, 0};
        if (kind == CA_CAPTURE_REGISTER) *to++ = event->registers[p->capture[i].from];
        if (kind == CA_CAPTURE_FIELD) *to++ = event->fields[p->capture[i].from];
        if (kind == CA_CAPTURE_REGISTER || kind == CA_CAPTURE_FIELD) continue;
        uint64_t at, room[CA_CAPTURE_BYTES_MAX / 8] = {0};
        head[1] = address_of(p, i, event, mem, &at);
        if (head[1] == CA_F_NONE) head[1] = load(event, mem, at, (uint8_t *)room, bytes, &head[0]);
        if (kind == CA_CAPTURE_STRING) {
            uint8_t *zero = memchr(room, 0, head[0]);
            if (zero != NULL) {
                uint32_t length = (uint32_t)(zero - (uint8_t *)room);
                memset(zero, 0, head[0] - length);
                /* It ended before what could not be read. */
                head[0] = length;
                head[1] = CA_F_NONE;
            }
        }
        memcpy(to, head, sizeof head);
        memcpy(to + 1, room, (bytes + 7) / 8 * 8);
        to += 1 + (bytes + 7) / 8;
    }
}

bool ca_rate_take(struct ca_rate *rate, uint64_t a_second, uint64_t now) {
    if (a_second == 0) return true;
    uint64_t passed = rate->last == 0 ? UNIT : now - rate->last, most = a_second * UNIT;
    rate->last = now;
    rate->credit += (passed < UNIT ? passed : UNIT) * a_second;
    if (rate->credit > most) rate->credit = most;
    if (rate->credit < UNIT) return false;
    rate->credit -= UNIT;
    return true;
}
