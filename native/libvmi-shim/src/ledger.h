/*
 * Private: the patch ledger of a domain, CA_LEDGER_FOLDER/DOMID on a tmpfs. It says which bytes of the domain's memory are
 * ours and what was there; whether the domain's monitor is ours; and which pauses are owed. Everything is written ahead of
 * the deed, so that whoever comes after a kill at any instant knows at least what was done.
 *
 * Locks are of open file descriptions (F_OFD_SETLK), shared by an agent's two processes: a lock is free when both are dead.
 */
#ifndef CA_LEDGER_H
#define CA_LEDGER_H

#include <stdatomic.h>

#include "cloudapp_events.h"
#include "shim.h"
#include "vm_event.h"

#define CA_LEDGER_BYTES 12288u
#define CA_PATCH_MAX 4u /* bytes of one patch */
#define CA_PAUSERS 64u
#define CA_DOMAINS 0x7ff0u /* numbers from here on are no domain's: xen.h, DOMID_FIRST_RESERVED */

enum ca_patch_state {
    CA_PATCH_FREE = 0,
    CA_PATCH_PREPARED, /* the bytes may be in the guest already, or not yet */
    CA_PATCH_LIVE,
    CA_PATCH_RESTORED  /* they are out; readers may have seen them a moment ago */
};

struct ca_patch {
    _Atomic uint32_t sequence; /* odd while the rest is being written */
    _Atomic uint32_t state;
    uint64_t gpa, va;
    uint32_t length, pad;
    uint8_t patch[CA_PATCH_MAX], original[CA_PATCH_MAX];
};

/* An agent that pauses, which is any number of them. `intent` says that a change was under way. */
enum ca_pause_intent { CA_PAUSE_NONE = 0, CA_PAUSE_TAKING, CA_PAUSE_GIVING };
struct ca_pauser {
    _Atomic uint32_t owed, intent;
};

struct ca_ledger {
    uint64_t magic;
    uint8_t uuid[16];
    _Atomic uint32_t live;    /* patches that are not free */
    _Atomic uint32_t highest; /* one more than the highest index ever used: how far readers look */
    _Atomic uint32_t monitor; /* 1 from before the ring is enabled until after it is disabled */
    uint32_t msrs;            /* MSRs whose writes were trapped */
    uint32_t msr[CA_PROGRAMS_MAX];
    struct ca_patch patch[CA_BREAKPOINTS_MAX];
    struct ca_pauser pauser[CA_PAUSERS];
    /* The event being answered, as its slot on the ring is overwritten by the answer. */
    _Atomic uint32_t answering; /* index + 1; 0: none */
    uint32_t pad;
    struct vm_event event;
};
_Static_assert(sizeof(struct ca_ledger) <= CA_LEDGER_BYTES, "the ledger has its room");

/* Bytes of the file that are locked. */
#define CA_LOCK_CREATE 0u
#define CA_LOCK_MONITOR 1u
#define CA_LOCK_PAUSER 2u

struct ca_ledger_file {
    struct ca_ledger *ledger;
    int fd; /* -1 for a reader */
};

/*
 * Opens the ledger of a domain, making it if it is missing, and beginning it anew if it is of another domain that had the
 * number before. For reading: CA_E_OPEN where there is none and none can be made, and then nobody here patches anything.
 */
int32_t ca_ledger_open(struct ca_ledger_file *file, uint32_t domid, const uint8_t uuid[16], bool write);
void ca_ledger_close(struct ca_ledger_file *file);
/* Removes the file of a domain that has gone. */
void ca_ledger_remove(uint32_t domid);
/* The domains that have a ledger, at most `most`; gives their number. */
uint32_t ca_ledger_domains(uint32_t *domids, uint32_t most);
bool ca_ledger_lock(const struct ca_ledger_file *file, uint32_t what);
void ca_ledger_unlock(const struct ca_ledger_file *file, uint32_t what);
/* For tests: this folder in place of CA_LEDGER_FOLDER, until NULL. */
void ca_ledger_use(const char *folder);

/* The writer's side, one process at a time (CA_LOCK_MONITOR). NULL if all are taken. */
struct ca_patch *ca_ledger_prepare(struct ca_ledger *ledger, uint64_t gpa, uint64_t va, const uint8_t *patch,
                                   const uint8_t *original, uint32_t length);
void ca_ledger_free(struct ca_ledger *ledger, struct ca_patch *patch);
/* How long readers are given between the ledger and the bytes, either way: they look at the ledger, then copy. */
void ca_ledger_grace(void);

/*
 * The reader's side. Limits [gpa, gpa + *bytes) so that it lies wholly in pages without patches, or in one page with some;
 * true in the latter case.
 */
bool ca_ledger_covers(const struct ca_ledger *ledger, uint64_t gpa, uint64_t *bytes);
/* Copies the page at `gpa` from `from`, with the original bytes wherever there are ours. False: it could not be read. */
bool ca_ledger_cover(const struct ca_ledger *ledger, uint64_t gpa, const uint8_t *from, uint8_t *to);
/* Limits [gpa, gpa + *bytes) to what is before the first patched byte; *bytes is 0 if that is the first. */
void ca_ledger_before(const struct ca_ledger *ledger, uint64_t gpa, uint64_t *bytes);

#endif
