/* Private: a domain we may have to undo something in. The worker has one, the supervisor, and --recover. */
#ifndef CA_SESSION_H
#define CA_SESSION_H

#include "events_program.h"
#include "ledger.h"
#include "xen.h"

struct ca_session {
    uint32_t domid, vcpus, pauser;
    uint8_t uuid[16];
    const struct ca_xen *xen;
    const struct ca_xen_events *events;
    void *foreign;
    struct ca_ledger_file file;
};

/* Finds the domain, opens its ledger and takes a place among its pausers. */
int32_t ca_session_open(struct ca_session *session, uint32_t domid);
/* The handles of this process; `forked`: its parent's are of no use to it. The ledger's locks stay shared. */
int32_t ca_session_attach(struct ca_session *session, bool forked);
void ca_session_close(struct ca_session *session);
/* A pause that a kill cut short in our place is remembered as owed, before one of ours writes over the word of it. */
void ca_session_inherit(struct ca_session *session);
/* NULL while the domain is there, or what became of it. */
const char *ca_session_fate(const struct ca_session *session);
int32_t ca_session_pause(struct ca_session *session);
int32_t ca_session_unpause(struct ca_session *session);
/* One page of the domain, to read and write; NULL with errno. */
uint8_t *ca_session_map(struct ca_session *session, uint64_t frame);
void ca_session_unmap(struct ca_session *session, uint8_t *page);

/* recover.c. Restores every byte, answers every waiting vCPU, gives the monitor up. Under CA_LOCK_MONITOR; may be killed at
 * any instant and run again. */
int32_t ca_detach(struct ca_session *session);
/* What dead agents left: ca_detach(), unless one that lives has the monitor, and the pauses they owed. */
int32_t ca_recover(struct ca_session *session);
struct ca_left {
    uint32_t breakpoints, monitor, pauses;
};
/* The same for a domain by its number, and what was undone there. One that has gone takes its ledger along. */
int32_t ca_recover_domain(uint32_t domid, struct ca_left *undone);
/* Undoes our own pauses. */
void ca_settle_pauses(struct ca_session *session);

/* answer.c: how an event is answered. */
enum ca_answer_kind {
    CA_ANSWER_PASS,    /* go on; where the instruction did not complete, try it again */
    CA_ANSWER_SKIP,    /* go on behind an instruction of `length` bytes */
    CA_ANSWER_EMULATE, /* let Xen emulate what lies there */
    CA_ANSWER_INSTEAD  /* let Xen emulate these 16 bytes in its place */
};
struct ca_answer {
    enum ca_answer_kind kind;
    uint32_t length;
    uint8_t bytes[16];
};
void ca_answer_fill(struct vm_event *response, const struct vm_event *request, const struct ca_answer *answer);
/*
 * The answer to an event that no breakpoint of ours explains: the guest's own instruction, or one that was there until a
 * moment ago. `mem`: entered, or NULL.
 */
struct ca_answer ca_answer_own(struct ca_session *session, const struct vm_event *request, struct ca_mem *mem);
void ca_event_from(struct ca_event *event, const struct vm_event *request);
/*
 * The answer's place on the ring, written so that a kill leaves either the request or the whole answer: the request is in
 * the ledger while its slot is overwritten.
 */
void ca_answer_put(struct ca_ledger *ledger, struct vm_event_ring *ring, uint32_t index, const struct vm_event *request,
                   const struct ca_answer *answer);

/* instruction.c */
struct ca_instruction {
    uint32_t length; /* 0: not one we know */
    bool nop;        /* has no effect but to be passed */
};
struct ca_instruction ca_instruction_decode(const uint8_t bytes[16]);
/* SLDT, STR, LLDT, LTR, SGDT, SIDT, LGDT, LIDT, with prefixes. */
bool ca_instruction_is_descriptor(const uint8_t *bytes, uint32_t count);

#endif
