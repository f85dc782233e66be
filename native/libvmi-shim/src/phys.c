#include "shim.h"

uint32_t ca_phys_load64(struct ca_mem *mem, uint64_t gpa, uint64_t *value) {
    uint8_t *host;
    uint64_t bytes;
    uint32_t reason = mem->ops->at(mem, gpa, &host, &bytes);
    if (CA_UNLIKELY(reason != CA_F_NONE)) return reason;
    if (CA_LIKELY(bytes >= 8)) return ca_guard_load64(value, host) == 0 ? CA_F_NONE : CA_F_SOURCE;
    uint64_t done;
    return ca_phys_read(mem, gpa, value, 8, &done);
}

static uint32_t copy(struct ca_mem *mem, uint64_t gpa, uint8_t *buffer, uint64_t bytes, uint64_t *done, bool write) {
    *done = 0;
    while (*done < bytes) {
        uint8_t *host;
        uint64_t there;
        if (gpa + *done < gpa) return CA_F_OUTSIDE_RAM;
        bool special = write && mem->ops->at_write != NULL;
        uint32_t reason = (special ? mem->ops->at_write : mem->ops->at)(mem, gpa + *done, &host, &there);
        if (reason != CA_F_NONE) return reason;
        uint64_t part = there < bytes - *done ? there : bytes - *done;
        size_t left = write ? ca_guard_copy(host, buffer + *done, part) : ca_guard_copy(buffer + *done, host, part);
        *done += part - left;
        if (left != 0) return CA_F_SOURCE;
    }
    return CA_F_NONE;
}

uint32_t ca_phys_read(struct ca_mem *mem, uint64_t gpa, void *to, uint64_t bytes, uint64_t *done) {
    return copy(mem, gpa, to, bytes, done, false);
}

uint32_t ca_phys_write(struct ca_mem *mem, uint64_t gpa, const void *from, uint64_t bytes, uint64_t *done) {
    /* The buffer is only read from. */
    return copy(mem, gpa, (uint8_t *)(uintptr_t)from, bytes, done, true);
}
