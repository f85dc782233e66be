/* Handles of objects other than memories. */
#include "grants.h"

#define SLOT_BITS 8

static void release(struct ca_objects *all, struct ca_object *object) {
    pthread_mutex_lock(&all->lock);
    uint32_t left = --object->refs;
    pthread_mutex_unlock(&all->lock);
    if (left > 0) return;
    pthread_mutex_destroy(&object->lock);
    object->free(object);
}

int32_t ca_objects_add(struct ca_objects *all, struct ca_object *object) {
    pthread_mutex_init(&object->lock, NULL);
    object->refs = 1;
    pthread_mutex_lock(&all->lock);
    int32_t handle = CA_E_NOMEM;
    /* Slot 0 is left out, so that no handle is 0. */
    for (uint32_t i = 1; i < CA_OBJECTS; i++) {
        if (all->slots[i].object != NULL) continue;
        all->slots[i].object = object;
        all->slots[i].generation = (all->slots[i].generation + 1) & ((1u << (31 - SLOT_BITS)) - 1);
        handle = (int32_t)(all->slots[i].generation << SLOT_BITS | i);
        break;
    }
    pthread_mutex_unlock(&all->lock);
    if (handle > 0) return handle;
    release(all, object);
    return ca_fail(CA_E_NOMEM, "more than %u %ss are open", CA_OBJECTS - 1, all->what);
}

static struct ca_object *find(struct ca_objects *all, int32_t handle, bool take) {
    uint32_t i = (uint32_t)handle & (CA_OBJECTS - 1);
    struct ca_object *object = NULL;
    pthread_mutex_lock(&all->lock);
    if (handle > 0 && all->slots[i].object != NULL && all->slots[i].generation == (uint32_t)handle >> SLOT_BITS) {
        object = all->slots[i].object;
        if (take) all->slots[i].object = NULL;
        else object->refs++;
    }
    pthread_mutex_unlock(&all->lock);
    if (object == NULL) ca_fail(CA_E_HANDLE, "%s %d is not open", all->what, (int)handle);
    return object;
}

struct ca_object *ca_objects_enter(struct ca_objects *all, int32_t handle) {
    struct ca_object *object = find(all, handle, false);
    if (object != NULL) pthread_mutex_lock(&object->lock);
    return object;
}

void ca_objects_leave(struct ca_objects *all, struct ca_object *object) {
    pthread_mutex_unlock(&object->lock);
    release(all, object);
}

int32_t ca_objects_close(struct ca_objects *all, int32_t handle) {
    struct ca_object *object = find(all, handle, true);
    if (object == NULL) return CA_E_HANDLE;
    release(all, object);
    return CA_OK;
}
