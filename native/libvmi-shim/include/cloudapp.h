/*
 * libcloudapp_shim: the native side of @cloudapp/sdk. This header is the whole ABI.
 *
 * Rules of the ABI
 *  - Arguments are int32_t, uint32_t, uint64_t and pointers to caller-owned buffers; no structs by value, no callbacks.
 *  - A negative return is an error of enum ca_error; ca_last_error() has its text, per thread. CA_OK means done,
 *    CA_MORE means: the slice of time is spent or a result buffer is full; take the results, call again with the same
 *    arguments and the same cursor.
 *  - A cursor is CA_CURSOR_SIZE bytes, all zero on the first call. It is opaque, but checked: a changed cursor gives
 *    CA_E_CURSOR or a wrong answer, never an access outside the caller's buffers or the guest's memory.
 *  - Tables are packed rows of little-endian u64/u32. Buffers holding u64 are 8-byte aligned.
 *  - The guest is hostile: nothing read from it is trusted; every loop is bounded.
 *  - Calls on one handle are serialised by a lock; different handles work in parallel.
 */
#ifndef CLOUDAPP_H
#define CLOUDAPP_H

#include <stdint.h>

#define CA_ABI_VERSION 1
#define CA_CURSOR_SIZE 2048
/* u64 words of a status buffer. */
#define CA_STATUS_WORDS 8

#if defined(__GNUC__)
#define CA_API __attribute__((visibility("default")))
#else
#define CA_API
#endif

enum ca_error {
    CA_OK = 0,
    CA_MORE = 1,
    CA_E_ARGUMENT = -1, /* an argument is out of its range */
    CA_E_HANDLE = -2,   /* no such handle, or closed */
    CA_E_OPEN = -3,     /* the source can not be opened */
    CA_E_NOMEM = -4,    /* out of memory or of handles */
    CA_E_REVOKED = -5,  /* the memory was revoked */
    CA_E_READONLY = -6, /* the memory was not opened for writing */
    CA_E_CRYPTO = -7,   /* no OpenSSL in the process and no libcrypto.so.3 */
    CA_E_CURSOR = -8,   /* the cursor does not belong to this call */
    CA_E_SOURCE = -9,   /* the source has gone */
    CA_E_UNSUPPORTED = -10, /* the host lacks what this needs */
    CA_E_PROTOCOL = -20 /* the peer domain broke the protocol */
};

/* Why an address could not be used; order as in src/vmi/memory.ts FaultReason. */
enum ca_reason {
    CA_F_NONE = 0,
    CA_F_NOT_PRESENT = 1,
    CA_F_NON_CANONICAL = 2,
    CA_F_RESERVED_BIT = 3,
    CA_F_OUTSIDE_RAM = 4,
    CA_F_SOURCE = 5,
    CA_F_PATCHED = 6 /* written to: the byte holds a breakpoint of an event agent ('denied') */
};

/* How an iteration ended. */
enum ca_end { CA_END_COMPLETE = 0, CA_END_LIMIT = 1, CA_END_CYCLE = 2, CA_END_FAULT = 3 };

/* State of a cell of a walk. */
enum ca_cell { CA_CELL_OK = 0, CA_CELL_NULL = 1, CA_CELL_FAULT = 2 };

/* Permissions of a mapping, all levels combined. */
enum ca_page_flags { CA_PAGE_WRITE = 1, CA_PAGE_USER = 2, CA_PAGE_EXECUTE = 4 };

/* ca_mem_open_file */
#define CA_OPEN_WRITE 1u

/* Every verb takes `flags`. With CA_KEEP, cached upper page-table levels of the call before are used on: only for a
 * guest that can not change its tables meanwhile (paused, or a dump). Without it they are dropped at the start. */
#define CA_KEEP 1u
/* With CA_ARMED, SIGBUS is taken to have its handler still: only where a verb ran just before, on the same thread, and
 * nothing since that could have replaced it. Without it that is asked for, which is a system call. */
#define CA_ARMED 2u
/* A verb works for about `budget_us`, then returns CA_MORE; with 0xffffffff until it is done. */

CA_API int32_t ca_abi_version(void);

/* Copies the calling thread's last error text, NUL-terminated and cut to `size`, returns its full length. */
CA_API int32_t ca_last_error(void *text, uint32_t size);

/*
 * Maps a RAM file. `path` is NUL-terminated. `regions`: `count` rows of u64 { guest-physical address, bytes, offset in
 * the file }, not overlapping; count 0 means the whole file at 0. A region may lie past the end of the file: what is
 * missing faults with CA_F_SOURCE. Returns a handle (> 0) or an error.
 */
CA_API int32_t ca_mem_open_file(const void *path, const void *regions, uint32_t count, uint32_t flags);

/* Closes and unmaps. Idempotent for the caller: a second call gives CA_E_HANDLE. */
CA_API int32_t ca_mem_close(int32_t mem);

/* Puts zero pages over every view, in place; each later call gives CA_E_REVOKED. */
CA_API int32_t ca_mem_revoke(int32_t mem);

/* Drops cached translations. */
CA_API int32_t ca_mem_invalidate(int32_t mem);

/* Guest-physical address after the last byte of RAM; 0 for a bad handle. */
CA_API uint64_t ca_mem_end(int32_t mem);

/*
 * Spaces: 0 is guest-physical; otherwise page-table root (bits 12..51) | levels (4 or 5).
 *
 * ca_read: `requests`: rows of u64 { space, index of the first address, count, length, offset in out }, `addresses`:
 * u64 each. Bytes that fault are zero. `faults`: rows of { u32 request, u32 index, u32 reason, u32 level, u64 address,
 * u64 entry }, one per address that faulted (its first). status[0] = rows of faults written by this call.
 */
CA_API int32_t ca_read(int32_t mem, uint32_t flags, uint32_t budget_us, const void *requests, uint32_t nrequests,
                       const void *addresses, uint32_t naddresses, void *out, uint32_t out_size, void *faults,
                       uint32_t fault_rows, void *cursor, void *status);

/*
 * ca_write: writes `size` bytes at `at`. status[0] = bytes written in all so far, [1] reason, [2] level, [3] address,
 * [4] entry of the fault that ended it.
 */
CA_API int32_t ca_write(int32_t mem, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t at,
                        const void *bytes, uint32_t size, void *cursor, void *status);

/*
 * ca_walk: `plan` is u64 { kind, space, head, node, limit, count, stride, pointers, shift_offset, slots_offset, slots,
 * columns } followed for each column by u64 { size, path length, path[8] } (offsets are two's complement).
 * `out` has room for `rows` rows and gets status[0] of them: their u64 addresses; then each column, so many times its
 * size; then their cell states, columns for each row. [1] end (with CA_OK), [2] reason, [3] level, [4] address,
 * [5] entry, [6] period of the cycle (0 if not known).
 */
enum ca_walk_kind {
    CA_WALK_LIST = 1,
    CA_WALK_HLIST = 2,
    CA_WALK_HASH = 3,
    CA_WALK_RBTREE = 4,
    CA_WALK_XARRAY = 5,
    CA_WALK_ARRAY = 6
};
CA_API int32_t ca_walk(int32_t mem, uint32_t flags, uint32_t budget_us, const void *plan, uint32_t plan_size,
                       void *out, uint32_t out_size, uint32_t rows, void *cursor, void *status);

/*
 * ca_pages: mappings of [start, last]. `out` has room for `rows` rows of 25 bytes and gets status[0] of them: their u64
 * virtual addresses, their physical ones, their sizes; then their u8 flags. At most `limit` runs in all. [1] end (CA_END_COMPLETE or
 * CA_END_LIMIT), [2] address to go on from.
 */
CA_API int32_t ca_pages(int32_t mem, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t start, uint64_t last,
                        uint32_t want, uint32_t limit, void *out, uint32_t rows, void *cursor, void *status);

/*
 * ca_search: `patterns`: `npatterns` rows of 264 bytes { u32 length, u32 0, u8 bytes[256] }. Finds matches that lie
 * wholly in [start, last] and begin at `offset` modulo `align`. `out`: rows of u64 { address, pattern }, in the order of
 * addresses. status as ca_pages.
 */
CA_API int32_t ca_search(int32_t mem, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t start, uint64_t last,
                         const void *patterns, uint32_t npatterns, uint32_t align, uint32_t offset, uint32_t limit,
                         void *out, uint32_t rows, void *cursor, void *status);

/*
 * ca_digest: SHA-256 of `pages` pages from `start` (page aligned) into `out` (32 bytes each, zero for a page that
 * faulted) and `present` (1 byte each).
 */
CA_API int32_t ca_digest(int32_t mem, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t start,
                         uint32_t pages, void *out, void *present, void *cursor, void *status);

#endif
