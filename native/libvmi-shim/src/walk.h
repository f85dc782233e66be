/* Private to the structure walks. */
#ifndef CA_WALK_H
#define CA_WALK_H

#include "shim.h"

#define CA_MAX_COLUMNS 32u
#define CA_MAX_PATH 8u
#define CA_MAX_CELL 4096u
/* A red-black tree of 2^47 nodes is at most 94 deep. */
#define CA_MAX_DEPTH 96u
/* Shifts fall from at most 60 to 0. */
#define CA_MAX_XARRAY 61u
/* Nodes on the way to one element, where the tree is as it should be: 64 bits of index, 4 a level. */
#define CA_XARRAY_PATH 16u

struct ca_column {
    uint64_t size;
    uint64_t length;
    uint64_t path[CA_MAX_PATH];
};

struct ca_plan {
    uint64_t kind, space, head, node, limit, count, stride, pointers, shift_offset, slots_offset, slots, columns;
};

/* They follow the plan. */
static inline const struct ca_column *ca_columns(const struct ca_plan *plan) {
    return (const struct ca_column *)(plan + 1);
}

/* Finds a sequence that returns into itself with a fixed memory (Brent): compare with an element kept further and
 * further apart. */
struct ca_brent {
    uint64_t kept;
    uint64_t power;
    uint64_t period;
};

struct ca_walk {
    struct ca_cursor head;
    uint64_t emitted;
    uint64_t at;     /* list, hlist: the node to give next. rbtree: the subtree to go into. array, hash: the index */
    uint64_t visits; /* xarray: nodes entered */
    struct ca_brent brent;
    uint32_t depth;
    uint32_t inside; /* hash: `chain` is a chain being followed */
    uint64_t chain;
    union {
        struct {
            uint64_t node, right;
        } tree[CA_MAX_DEPTH];
        struct {
            uint64_t node, slot, shift;
        } xarray[CA_MAX_XARRAY];
    } stack;
};

_Static_assert(sizeof(struct ca_walk) <= CA_CURSOR_SIZE, "the cursor of a walk fits");

enum ca_step {
    CA_STEP_ELEMENT, /* *element is the next one */
    CA_STEP_AGAIN,   /* some work done, nothing found yet */
    CA_STEP_END,     /* complete */
    CA_STEP_CYCLE,
    CA_STEP_FAULT, /* *fault says where */
    CA_STEP_BOUND  /* more was looked through than `limit` elements can need */
};

typedef enum ca_step ca_stepper(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, uint64_t *element,
                                struct ca_fault *fault);

/* On the first call of a walk each is called with walk all zero but for walk->at = 0 and head.done = 0. */
ca_stepper ca_step_list, ca_step_hlist, ca_step_hash, ca_step_array, ca_step_rbtree, ca_step_xarray;
/* What a stepper needs read before its first step. */
bool ca_walk_begin(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, struct ca_fault *fault);

static inline bool ca_brent_repeats(struct ca_brent *brent, uint64_t node) {
    if (brent->power != 0) {
        brent->period++;
        if (node == brent->kept) return true;
    }
    if (brent->power == brent->period) {
        brent->kept = node;
        brent->power = brent->power == 0 ? 1 : brent->power * 2;
        brent->period = 0;
    }
    return false;
}

#endif
