/*
 * Trees. Kernel: include/linux/rbtree_types.h (struct rb_node: parent and colour, right, left), include/linux/xarray.h
 * (the low bits of an entry), lib/xarray.c. Only child links are followed, with a stack of our own, so that a forged
 * parent pointer leads nowhere.
 */
#include "walk.h"

enum ca_step ca_step_rbtree(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t *element,
                            struct ca_fault *fault) {
    if (walk->at != 0) {
        uint64_t children[2]; /* right, left */
        /* Deeper than any balanced tree: the left links return into themselves. */
        if (walk->depth == CA_MAX_DEPTH) return CA_STEP_CYCLE;
        if (!ca_load(mem, plan->space, walk->at + 8, children, sizeof children, fault)) return CA_STEP_FAULT;
        walk->stack.tree[walk->depth].node = walk->at;
        walk->stack.tree[walk->depth].right = children[0];
        walk->depth++;
        walk->at = children[1];
        return CA_STEP_AGAIN;
    }
    if (walk->depth == 0) return CA_STEP_END;
    walk->depth--;
    uint64_t node = walk->stack.tree[walk->depth].node;
    if (ca_brent_repeats(&walk->brent, node)) return CA_STEP_CYCLE;
    walk->at = walk->stack.tree[walk->depth].right;
    *element = node - plan->node;
    return CA_STEP_ELEMENT;
}

/* xa_is_node(): internal (low bits 10) and not a small number (siblings, retry and zero entries). */
static bool is_node(uint64_t entry) { return (entry & 3) == 2 && entry > 4096; }

static enum ca_step enter(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t node,
                          struct ca_fault *fault) {
    uint8_t shift;
    /* More nodes than that for the elements asked for can only be a structure that shares its parts with itself. */
    if (++walk->visits > plan->limit * CA_XARRAY_PATH + 4096) return CA_STEP_BOUND;
    if (!ca_load(mem, plan->space, node + plan->shift_offset, &shift, 1, fault)) return CA_STEP_FAULT;
    /* Shifts fall from node to node, so that the depth is bounded and no node is its own descendant. */
    if (walk->depth == CA_MAX_XARRAY || shift > 60 ||
        (walk->depth > 0 && shift >= walk->stack.xarray[walk->depth - 1].shift))
        return CA_STEP_CYCLE;
    walk->stack.xarray[walk->depth].node = node;
    walk->stack.xarray[walk->depth].slot = 0;
    walk->stack.xarray[walk->depth].shift = shift;
    walk->depth++;
    return CA_STEP_AGAIN;
}

enum ca_step ca_step_xarray(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t *element,
                            struct ca_fault *fault) {
    uint64_t entry;
    if (walk->inside == 0) {
        /* The head: a node, or the only entry, at index 0. */
        walk->inside = 1;
        entry = walk->at;
    } else {
        if (walk->depth == 0) return CA_STEP_END;
        uint32_t top = walk->depth - 1;
        if (walk->stack.xarray[top].slot >= plan->slots) {
            walk->depth--;
            return CA_STEP_AGAIN;
        }
        uint64_t slot = walk->stack.xarray[top].slot++;
        if (!ca_load64(mem, plan->space, walk->stack.xarray[top].node + plan->slots_offset + slot * 8, &entry, fault))
            return CA_STEP_FAULT;
    }
    if (is_node(entry)) return enter(mem, plan, walk, entry - 2, fault);
    /* Null, an internal mark, or a value entry (bit 0: a number, no element). */
    if (entry == 0 || (entry & 3) != 0) return CA_STEP_AGAIN;
    *element = entry;
    return CA_STEP_ELEMENT;
}
