/* Both ends of a vchan in one process: the same rings over plain memory, eventfds in place of event channels. For tests. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vchan.h"

struct ca_vchan_memory {
    _Atomic uint32_t users;
    uint8_t *base;
    size_t bytes;
    int fds[2];
};

void ca_vchan_memory_release(struct ca_vchan_memory *memory) {
    if (atomic_fetch_sub(&memory->users, 1) > 1) return;
    for (int i = 0; i < 2; i++)
        if (memory->fds[i] >= 0) close(memory->fds[i]);
    if (memory->base != NULL) munmap(memory->base, memory->bytes);
    free(memory);
}

static void free_end(struct ca_object *object) {
    struct ca_vchan *vchan = (struct ca_vchan *)object;
    atomic_store(vchan->server ? &vchan->page->srv_live : &vchan->page->cli_live, 0);
    uint64_t one = 1;
    /* Full: the other end is awake already. */
    if (write(vchan->peer_fd, &one, sizeof one) < 0 && errno != EAGAIN) errno = 0;
    ca_vchan_memory_release(vchan->memory);
    free(vchan);
}

static struct ca_vchan_memory *make(size_t bytes) {
    struct ca_vchan_memory *memory = calloc(1, sizeof *memory);
    if (memory == NULL) return NULL;
    atomic_store(&memory->users, 1);
    memory->bytes = bytes;
    for (int i = 0; i < 2; i++) memory->fds[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base != MAP_FAILED) memory->base = base;
    if (memory->base != NULL && memory->fds[0] >= 0 && memory->fds[1] >= 0) return memory;
    ca_vchan_memory_release(memory);
    return NULL;
}

int32_t ca_vchan_pair(uint32_t bytes, void *handles, void *info) {
    if (handles == NULL || info == NULL || bytes < CA_VCHAN_RING_MIN || bytes > CA_VCHAN_RING_MAX)
        return ca_fail(CA_E_ARGUMENT, "rings have %u to %u bytes, not %u", CA_VCHAN_RING_MIN, CA_VCHAN_RING_MAX, bytes);
    uint32_t left, right;
    ca_vchan_orders(bytes, bytes, &left, &right);
    size_t left_bytes = (size_t)ca_vchan_ring_pages(left) * CA_PAGE, right_bytes = (size_t)ca_vchan_ring_pages(right) * CA_PAGE;
    struct ca_vchan_memory *memory = make(CA_PAGE + left_bytes + right_bytes);
    if (memory == NULL) return ca_fail(CA_E_NOMEM, "out of memory or descriptors");
    struct ca_vchan_page *page = (struct ca_vchan_page *)memory->base;
    page->left_order = (uint16_t)left;
    page->right_order = (uint16_t)right;
    atomic_store(&page->cli_live, 1);
    atomic_store(&page->srv_live, 1);
    int32_t result = CA_OK, ends[2] = {0};
    for (int i = 0; i < 2 && result == CA_OK; i++) {
        struct ca_vchan *vchan = calloc(1, sizeof *vchan);
        if (vchan == NULL) {
            result = ca_fail(CA_E_NOMEM, "out of memory");
            break;
        }
        vchan->object.free = free_end;
        vchan->server = i == 0;
        vchan->page = page;
        vchan->memory = memory;
        vchan->fd = memory->fds[i];
        vchan->peer_fd = memory->fds[1 - i];
        atomic_fetch_add(&memory->users, 1);
        result = ca_vchan_start(vchan, left, right, memory->base + CA_PAGE, memory->base + CA_PAGE + left_bytes);
        const uint32_t words[CA_VCHAN_INFO_WORDS] = {(uint32_t)vchan->fd, vchan->in.size, vchan->out.size};
        memcpy((uint32_t *)info + i * CA_VCHAN_INFO_WORDS, words, sizeof words);
        ends[i] = ca_vchan_hold(vchan);
        if (ends[i] < 0) result = ends[i];
    }
    ca_vchan_memory_release(memory);
    if (result == CA_OK) memcpy(handles, ends, sizeof ends);
    else
        for (int i = 0; i < 2; i++)
            if (ends[i] > 0) ca_vchan_close(ends[i]);
    return result;
}
