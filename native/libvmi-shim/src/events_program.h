/* Private: programs of subscribers (cloudapp_events.h), checked and evaluated. */
#ifndef CA_EVENTS_PROGRAM_H
#define CA_EVENTS_PROGRAM_H

#include "cloudapp_events.h"
#include "shim.h"

#define CA_REGISTERS (CA_REG_LAST + 1)
#define CA_FIELDS (CA_FIELD_LAST + 1)

/* One event of a vCPU, whatever raised it. */
struct ca_event {
    uint32_t trap; /* enum ca_trap */
    uint32_t vcpu;
    uint64_t registers[CA_REGISTERS];
    uint64_t fields[CA_FIELDS];
};

struct ca_program_data {
    uint32_t trap, flags, operations, captures, bytes; /* bytes: of a record */
    uint64_t argument, space, rate;
    struct {
        uint32_t code;
        uint64_t operand;
    } operation[CA_PREDICATE_MAX];
    struct {
        uint32_t kind, from, bytes, hops;
        uint64_t offset[CA_HOPS_MAX + 1];
    } capture[CA_CAPTURES_MAX];
};

/* Checks a program of `size` bytes from a client who may be hostile. CA_OK, or CA_E_ARGUMENT with a text. */
int32_t ca_program_parse(struct ca_program_data *program, const void *words, uint32_t size);

/*
 * The address space of the vCPU, as the verbs know it: 0 without paging. False if it has no 4- or 5-level tables, and
 * then nothing can be read.
 */
bool ca_event_space(const struct ca_event *event, uint64_t *space);

/* The rest reads through `mem`, entered by the caller; NULL: every read faults. */
bool ca_program_matches(const struct ca_program_data *program, const struct ca_event *event, struct ca_mem *mem);
/* Writes the captures behind the head of a record, program->bytes - CA_RECORD_WORDS * 8 bytes. */
void ca_program_capture(const struct ca_program_data *program, const struct ca_event *event, struct ca_mem *mem,
                        uint64_t *to);

/* Records a second, with a burst of one second. */
struct ca_rate {
    uint64_t credit, last; /* credit: in 1/1000000000 of a record */
};
bool ca_rate_take(struct ca_rate *rate, uint64_t a_second, uint64_t now);

#endif
