/* The frame of every structure walk: checks the plan, takes elements from a stepper, fetches their columns. */
#include "walk.h"

#define MAGIC 0x57414c4bu /* WALK */

static ca_stepper *const steppers[] = {NULL,           ca_step_list,   ca_step_hlist, ca_step_hash,
                                       ca_step_rbtree, ca_step_xarray, ca_step_array};

/* Where the parts of the caller's result buffer begin. */
struct table {
    uint64_t *addresses;
    uint8_t *column[CA_MAX_COLUMNS];
    uint8_t *cells;
};

bool ca_walk_begin(struct ca_mem *mem, const struct ca_plan *plan, struct ca_walk *walk, struct ca_fault *fault) {
    if (plan->kind == CA_WALK_ARRAY || plan->kind == CA_WALK_HASH) return true;
    return ca_load64(mem, plan->space, plan->head, &walk->at, fault);
}

static int32_t check_plan(const struct ca_plan *plan, uint32_t size, uint64_t out_size, uint32_t rows) {
    if (plan == NULL || ((uintptr_t)plan & 7) != 0 || size < sizeof *plan)
        return ca_fail(CA_E_ARGUMENT, "the plan is missing or cut");
    if (plan->kind < CA_WALK_LIST || plan->kind > CA_WALK_ARRAY)
        return ca_fail(CA_E_ARGUMENT, "walk kind %llu is not known", (unsigned long long)plan->kind);
    if (!ca_space_valid(plan->space)) return ca_fail(CA_E_ARGUMENT, "the space is malformed");
    if (plan->columns > CA_MAX_COLUMNS || size != sizeof *plan + plan->columns * sizeof(struct ca_column))
        return ca_fail(CA_E_ARGUMENT, "the plan's columns do not fit its size");
    if (plan->limit == 0 || plan->limit > UINT32_MAX || plan->slots > 64 || (plan->slots & (plan->slots - 1)) != 0)
        return ca_fail(CA_E_ARGUMENT, "limit or slots are out of range");
    uint64_t row = 8 + plan->columns;
    for (uint64_t i = 0; i < plan->columns; i++) {
        const struct ca_column *column = &ca_columns(plan)[i];
        if (column->size == 0 || column->size > CA_MAX_CELL || column->length == 0 || column->length > CA_MAX_PATH)
            return ca_fail(CA_E_ARGUMENT, "column %llu is out of range", (unsigned long long)i);
        row += column->size;
    }
    if (rows == 0 || row > out_size / rows) return ca_fail(CA_E_ARGUMENT, "the result buffer is too small");
    return CA_OK;
}

/* A cursor that did not come from us must not reach outside the stack. */
static bool damaged(const struct ca_plan *plan, const struct ca_walk *walk) {
    if (plan->kind == CA_WALK_XARRAY) return walk->depth > CA_MAX_XARRAY;
    return walk->depth > CA_MAX_DEPTH;
}

/* The page that was looked at last: the fields of an element lie in two or three, and to find one costs more than to read it. */
struct near {
    uint64_t page;
    const uint8_t *host; /* NULL: it takes work, or is not there */
};

static const uint8_t *find(struct ca_mem *mem, uint64_t space, struct near *near, uint64_t va, uint64_t bytes) {
    const uint64_t in = va & (CA_PAGE - 1), page = va - in;
    if (in + bytes > CA_PAGE) return NULL;
    if (near->page != page) {
        near->page = page;
        ca_locate(mem, space, &page, 1, CA_PAGE, &near->host);
    }
    return near->host == NULL ? NULL : near->host + in;
}

/* From `host` if that is known and still holds. */
static bool load(struct ca_mem *mem, uint64_t space, const uint8_t *host, uint64_t va, void *to, uint64_t bytes) {
    struct ca_fault fault;
    if (CA_LIKELY(host != NULL && !ca_patched(mem)) && ca_guard_fetch(to, host, bytes)) return true;
    return bytes == 8 ? ca_load64(mem, space, va, to, &fault) : ca_load(mem, space, va, to, bytes, &fault);
}

static uint32_t fetch(struct ca_mem *mem, const struct ca_plan *plan, const struct table *table, uint32_t row,
                      uint64_t element) {
    const struct ca_column *columns = ca_columns(plan);
    const uint8_t *hosts[CA_MAX_COLUMNS];
    struct near near = {UINT64_MAX, NULL};
    const uint32_t moved = mem->moved;
    uint32_t cost = 1;
    /* All that is known at once, so that the processor's waits for memory overlap. */
    for (uint32_t i = 0; i < plan->columns; i++) {
        hosts[i] = find(mem, plan->space, &near, element + columns[i].path[0], columns[i].length == 1 ? columns[i].size : 8);
        __builtin_prefetch(hosts[i]);
    }
    for (uint32_t i = 0; i < plan->columns; i++) {
        const struct ca_column *column = &columns[i];
        uint8_t *to = table->column[i] + (uint64_t)row * column->size;
        uint8_t state = CA_CELL_OK;
        uint64_t at = element;
        const uint8_t *host = mem->moved == moved ? hosts[i] : NULL;
        for (uint32_t hop = 0; hop + 1 < column->length && state == CA_CELL_OK; hop++) {
            if (!load(mem, plan->space, host, at + column->path[hop], &at, 8)) state = CA_CELL_FAULT;
            else if (at == 0) state = CA_CELL_NULL;
            host = NULL;
        }
        if (state == CA_CELL_OK && !load(mem, plan->space, host, at + column->path[column->length - 1], to, column->size))
            state = CA_CELL_FAULT;
        if (state != CA_CELL_OK) memset(to, 0, column->size);
        table->cells[(uint64_t)row * plan->columns + i] = state;
        cost += (uint32_t)column->length + (uint32_t)(column->size >> 11);
    }
    return cost;
}

/* Puts the columns, which had room for more rows, one behind the other. */
static void close_up(const struct ca_plan *plan, const struct table *table, uint64_t rows) {
    uint8_t *to = (uint8_t *)table->addresses + rows * 8;
    for (uint32_t i = 0; i < plan->columns; i++) {
        const uint64_t bytes = rows * ca_columns(plan)[i].size;
        memmove(to, table->column[i], bytes);
        to += bytes;
    }
    memmove(to, table->cells, rows * plan->columns);
}

int32_t ca_walk(int32_t handle, uint32_t flags, uint32_t budget_us, const void *plan_bytes, uint32_t plan_size,
                void *out, uint32_t out_size, uint32_t rows, void *cursor, void *status) {
    const struct ca_plan *plan = plan_bytes;
    struct ca_walk *walk = cursor;
    bool first;
    int32_t result = check_plan(plan, plan_size, out_size, rows);
    if (result == CA_OK) result = ca_cursor_open(cursor, MAGIC, &first);
    if (result != CA_OK) return result;
    if (out == NULL || ((uintptr_t)out & 7) != 0 || status == NULL) return ca_fail(CA_E_ARGUMENT, "a buffer is missing");
    if (damaged(plan, walk)) return ca_fail(CA_E_CURSOR, "the cursor is damaged");

    struct table table;
    uint8_t *place = out;
    table.addresses = (uint64_t *)out;
    place += (uint64_t)rows * 8;
    for (uint32_t i = 0; i < plan->columns; i++) {
        table.column[i] = place;
        place += (uint64_t)rows * ca_columns(plan)[i].size;
    }
    table.cells = place;

    struct ca_mem *mem;
    result = ca_enter(handle, flags, &mem);
    if (result != CA_OK) return result;
    struct ca_slice slice;
    ca_slice_start(&slice, budget_us);
    ca_stepper *step = steppers[plan->kind];
    struct ca_fault fault = {0, 0, 0, 0};
    uint32_t row = 0, end = CA_END_COMPLETE;
    result = CA_OK;
    bool going = true;
    if (first && !ca_walk_begin(mem, plan, walk, &fault)) {
        end = CA_END_FAULT;
        going = false;
    }
    while (going) {
        uint64_t element = 0;
        uint32_t cost = 1;
        if (row == rows) {
            result = CA_MORE;
            break;
        }
        switch (step(mem, plan, walk, &element, &fault)) {
        case CA_STEP_ELEMENT:
            if (walk->emitted == plan->limit) {
                end = CA_END_LIMIT;
                going = false;
                break;
            }
            table.addresses[row] = element;
            cost += fetch(mem, plan, &table, row, element);
            row++;
            walk->emitted++;
            break;
        case CA_STEP_AGAIN: break;
        case CA_STEP_END: going = false; break;
        case CA_STEP_BOUND:
            end = CA_END_LIMIT;
            going = false;
            break;
        case CA_STEP_CYCLE:
            end = CA_END_CYCLE;
            going = false;
            break;
        case CA_STEP_FAULT:
            end = CA_END_FAULT;
            going = false;
            break;
        }
        if (going && ca_slice_spent(&slice, mem, cost)) {
            result = CA_MORE;
            break;
        }
    }
    if (result == CA_OK) walk->head.done = 1;
    if (row < rows) close_up(plan, &table, row);
    uint64_t *words = status;
    words[0] = row;
    words[1] = end;
    words[2] = fault.reason;
    words[3] = fault.level;
    words[4] = fault.address;
    words[5] = fault.entry;
    words[6] = end == CA_END_CYCLE ? walk->brent.period : 0;
    ca_leave(mem);
    return result;
}
