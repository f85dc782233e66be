/* Several threads on one handle, while it is revoked and closed under them. */
#include <pthread.h>
#include <unistd.h>

#include "test.h"

static int32_t mem;

static void *reader(void *unused) {
    uint64_t status[CA_STATUS_WORDS], at = VIRT(AT_ELEMENTS), value, request[5] = {SPACE4, 0, 1, 8, 0};
    struct fault_row fault;
    for (;;) {
        struct cursor cursor = {{0}};
        int32_t code = ca_read(mem, 0, 1000, request, 1, &at, 1, &value, 8, &fault, 1, &cursor, status);
        if (code == CA_E_REVOKED || code == CA_E_HANDLE) return unused;
        if (code != CA_OK || status[0] != 0 || value != 100) abort();
    }
}

void test_threads(void) {
    for (unsigned round = 0; round < 20; round++) {
        uint8_t *ram;
        int fd = guest_new(&ram);
        pthread_t threads[4];
        mem = guest_open(fd, 0);
        for (unsigned i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, reader, NULL) == 0);
        if (round % 2 == 0) CHECK_EQUAL(ca_mem_revoke(mem), CA_OK);
        CHECK_EQUAL(ca_mem_close(mem), CA_OK);
        for (unsigned i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
        close(fd);
    }
}
