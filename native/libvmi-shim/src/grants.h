/* Private to the parts that share memory with other domains. */
#ifndef CA_GRANTS_H
#define CA_GRANTS_H

#include "cloudapp_vchan.h"
#include "shim.h"

/* Pages of ours that another domain may map, or pages of another domain mapped here. */
struct ca_grants {
    int fd; /* of gntalloc or gntdev; -1: none */
    uint8_t *base;
    size_t bytes;
    uint64_t index; /* what the device calls the first page */
    bool shared;    /* ours */
    bool writable;  /* by us */
};

/* grants.c. On failure *grants is as after ca_grants_free(). `refs`: given by share, taken by map. */
int32_t ca_grants_make(struct ca_grants *grants, uint32_t domid, uint32_t flags, uint32_t pages, uint32_t *refs);
int32_t ca_grants_take(struct ca_grants *grants, uint32_t domid, uint32_t flags, uint32_t pages, const uint32_t *refs);
int32_t ca_grants_on_unmap(struct ca_grants *grants, uint64_t at, uint32_t port);
void ca_grants_free(struct ca_grants *grants);

/*
 * objects.c: handles of one kind. A stale one is an error and not a crash; calls on one object are serialised; what is closed
 * while it is used goes when its last user has left.
 */
struct ca_object {
    pthread_mutex_t lock;
    uint32_t refs;
    void (*free)(struct ca_object *object);
};
#define CA_OBJECTS 256u
struct ca_objects {
    const char *what;
    pthread_mutex_t lock;
    struct {
        struct ca_object *object;
        uint32_t generation;
    } slots[CA_OBJECTS];
};
/* Takes the object: frees it if there is no slot left. */
int32_t ca_objects_add(struct ca_objects *all, struct ca_object *object);
/* Locked, or NULL with the error text set. */
struct ca_object *ca_objects_enter(struct ca_objects *all, int32_t handle);
void ca_objects_leave(struct ca_objects *all, struct ca_object *object);
int32_t ca_objects_close(struct ca_objects *all, int32_t handle);

#endif
