/*
 * Lists, chains and arrays. Kernel: include/linux/types.h (list_head, hlist_head), include/linux/list.h,
 * include/linux/list_nulls.h. A node is given only when its link could be read: a poisoned or wild pointer is a fault
 * at the end of good rows, not a row.
 */
#include "walk.h"

/* A ring has no null link: a fault also if something should be mapped at address 0. */
static enum ca_step broken(struct ca_mem *mem, const struct ca_plan *plan, struct ca_fault *fault) {
    uint64_t unused;
    if (ca_load64(mem, plan->space, 0, &unused, fault)) *fault = (struct ca_fault){0, 0, CA_F_NOT_PRESENT, 0};
    return CA_STEP_FAULT;
}

enum ca_step ca_step_list(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t *element,
                          struct ca_fault *fault) {
    uint64_t node = walk->at, next;
    if (node == plan->head) return CA_STEP_END;
    if (node == 0) return broken(mem, plan, fault);
    if (ca_brent_repeats(&walk->brent, node)) return CA_STEP_CYCLE;
    if (!ca_load64(mem, plan->space, node, &next, fault)) return CA_STEP_FAULT;
    walk->at = next;
    *element = node - plan->node;
    return CA_STEP_ELEMENT;
}

/* One node of a null-terminated chain; an odd pointer ends it too (hlist_nulls). */
static enum ca_step chain(struct ca_mem *mem, const struct ca_plan *plan, struct ca_brent *brent, uint64_t *at,
                          uint64_t *element, struct ca_fault *fault) {
    uint64_t node = *at, next;
    if (node == 0 || (node & 1) != 0) return CA_STEP_END;
    if (ca_brent_repeats(brent, node)) return CA_STEP_CYCLE;
    if (!ca_load64(mem, plan->space, node, &next, fault)) return CA_STEP_FAULT;
    *at = next;
    *element = node - plan->node;
    return CA_STEP_ELEMENT;
}

enum ca_step ca_step_hlist(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t *element,
                           struct ca_fault *fault) {
    return chain(mem, plan, &walk->brent, &walk->at, element, fault);
}

enum ca_step ca_step_hash(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t *element,
                          struct ca_fault *fault) {
    if (walk->inside == 0) {
        if (walk->at >= plan->count) return CA_STEP_END;
        if (!ca_load64(mem, plan->space, plan->head + walk->at * 8, &walk->chain, fault)) return CA_STEP_FAULT;
        if (walk->chain == 0 || (walk->chain & 1) != 0) {
            walk->at++;
            return CA_STEP_AGAIN;
        }
        walk->inside = 1;
        memset(&walk->brent, 0, sizeof walk->brent);
    }
    enum ca_step step = chain(mem, plan, &walk->brent, &walk->chain, element, fault);
    if (step != CA_STEP_END) return step;
    walk->inside = 0;
    walk->at++;
    return CA_STEP_AGAIN;
}

enum ca_step ca_step_array(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t *element,
                           struct ca_fault *fault) {
    if (walk->at >= plan->count) return CA_STEP_END;
    uint64_t slot = plan->head + walk->at * plan->stride;
    *element = slot;
    if (plan->pointers != 0) {
        if (!ca_load64(mem, plan->space, slot, element, fault)) return CA_STEP_FAULT;
        if (*element == 0) {
            walk->at++;
            return CA_STEP_AGAIN;
        }
    }
    walk->at++;
    return CA_STEP_ELEMENT;
}
