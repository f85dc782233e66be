#define _GNU_SOURCE
#include <errno.h>
#include <sys/mman.h>

#include "session.h"

int32_t ca_session_open(struct ca_session *s, uint32_t domid) {
    struct ca_xen_domain domain;
    *s = (struct ca_session){.domid = domid, .file = {NULL, -1}};
    int32_t result = ca_xen_load(&s->xen);
    if (result == CA_OK) result = ca_xen_load_events(&s->events);
    if (result == CA_OK) result = ca_xen_find(s->xen, domid, &domain);
    if (result != CA_OK) return result;
    if ((domain.flags & CA_XEN_DYING) != 0) return ca_fail(CA_E_OPEN, "domain %u is going", domid);
    memcpy(s->uuid, domain.uuid, sizeof s->uuid);
    s->vcpus = domain.highest + 1;
    result = ca_ledger_open(&s->file, domid, s->uuid, true);
    if (result != CA_OK) return result;
    while (s->pauser < CA_PAUSERS && !ca_ledger_lock(&s->file, CA_LOCK_PAUSER + s->pauser)) s->pauser++;
    if (s->pauser == CA_PAUSERS) {
        ca_ledger_close(&s->file);
        return ca_fail(CA_E_NOMEM, "domain %u is served by %u agents already", domid, CA_PAUSERS);
    }
    ca_session_inherit(s);
    return CA_OK;
}

void ca_session_inherit(struct ca_session *s) {
    struct ca_pauser *p = &s->file.ledger->pauser[s->pauser];
    if (atomic_load(&p->intent) == CA_PAUSE_TAKING) atomic_fetch_add(&p->owed, 1);
    atomic_store(&p->intent, CA_PAUSE_NONE);
}

int32_t ca_session_attach(struct ca_session *s, bool forked) {
    int32_t result = forked ? ca_xen_reopen() : CA_OK;
    if (result != CA_OK) return result;
    s->foreign = s->xen->foreign_open(NULL, 0);
    return s->foreign == NULL ? ca_fail(CA_E_UNSUPPORTED, "foreign memory can not be opened: %s", strerror(errno)) : CA_OK;
}

void ca_session_close(struct ca_session *s) {
    if (s->foreign != NULL) s->xen->foreign_close(s->foreign);
    s->foreign = NULL;
    ca_ledger_close(&s->file);
}

const char *ca_session_fate(const struct ca_session *s) {
    struct ca_xen_domain domain;
    int32_t result = ca_xen_find(s->xen, s->domid, &domain);
    if (result == CA_E_OPEN || (result == CA_OK && memcmp(domain.uuid, s->uuid, sizeof s->uuid) != 0)) return "the domain has ended";
    if (result != CA_OK) return "Xen no longer answers for the domain";
    if ((domain.flags & (CA_XEN_DYING | CA_XEN_SHUTDOWN)) != 0) return "the domain has shut down, is being saved, or ends";
    return NULL;
}

int32_t ca_session_pause(struct ca_session *s) {
    struct ca_pauser *p = &s->file.ledger->pauser[s->pauser];
    atomic_store(&p->intent, CA_PAUSE_TAKING);
    int failed = s->xen->domain_pause(s->xen->control, s->domid);
    int32_t result = failed == 0 ? CA_OK : ca_xen_failed("pause", s->domid);
    if (failed == 0) atomic_fetch_add(&p->owed, 1);
    atomic_store(&p->intent, CA_PAUSE_NONE);
    return result;
}

int32_t ca_session_unpause(struct ca_session *s) {
    struct ca_pauser *p = &s->file.ledger->pauser[s->pauser];
    atomic_store(&p->intent, CA_PAUSE_GIVING);
    int failed = s->xen->domain_unpause(s->xen->control, s->domid);
    int32_t result = failed == 0 ? CA_OK : ca_xen_failed("unpause", s->domid);
    /* Refused: there was nothing to undo, or no domain. */
    atomic_fetch_sub(&p->owed, 1);
    atomic_store(&p->intent, CA_PAUSE_NONE);
    return result;
}

uint8_t *ca_session_map(struct ca_session *s, uint64_t frame) {
    int error = 0;
    uint8_t *page = s->xen->foreign_map(s->foreign, s->domid, PROT_READ | PROT_WRITE, 1, &frame, &error);
    if (page != NULL && error != 0) {
        s->xen->foreign_unmap(s->foreign, page, 1);
        errno = error < 0 ? -error : error;
        return NULL;
    }
    return page;
}

void ca_session_unmap(struct ca_session *s, uint8_t *page) { s->xen->foreign_unmap(s->foreign, page, 1); }
