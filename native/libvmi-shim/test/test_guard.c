/* Files that shrink, before and while they are read. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shim.h"
#include "test.h"

/* Without the look at the file's size: the copies alone must survive. */
static void copies(void) {
    int fd = memfd_create("shrinks", 0);
    CHECK(ftruncate(fd, 8192) == 0);
    uint8_t *view = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), out[1024], in[1024];
    memset(view, 7, 8192);
    memset(in, 9, sizeof in);
    CHECK_EQUAL(ca_guard_arm(), CA_OK);
    CHECK(ftruncate(fd, 4096) == 0);
    for (size_t size = 1; size <= sizeof out; size++) {
        for (size_t there = 0; there <= size; there += there < 20 ? 1 : 97) {
            memset(out, 0, sizeof out);
            size_t left = ca_guard_copy(out, view + 4096 - there, size);
            CHECK_EQUAL(left, size - there);
            CHECK(there == 0 || out[there - 1] == 7);
            left = ca_guard_copy(view + 4096 - there, in, size);
            CHECK_EQUAL(left, size - there);
            CHECK(there == 0 || view[4095] == 9);
            memset(view + 4096 - there, 7, there);
        }
    }
    uint64_t value = 0;
    CHECK_EQUAL(ca_guard_load64(&value, view + 4088), 0);
    CHECK_EQUAL(value, 0x0707070707070707ull);
    CHECK(ca_guard_load64(&value, view + 4096) != 0);
    munmap(view, 8192);
    close(fd);
}

/* Every byte in its place, and none beyond. */
static void places(void) {
    uint8_t from[700], to[700];
    for (size_t i = 0; i < sizeof from; i++) from[i] = (uint8_t)(i * 7 + (i >> 8));
    for (size_t size = 0; size <= 640; size++) {
        const size_t at = size % 17, source = size % 13;
        memset(to, 0xee, sizeof to);
        CHECK_EQUAL(ca_guard_copy(to + 1 + at, from + source, size), 0);
        CHECK(memcmp(to + 1 + at, from + source, size) == 0);
        CHECK(to[at] == 0xee && to[1 + at + size] == 0xee);
    }
}

static void cut_file(void) {
    uint8_t *ram, bytes[8192];
    int fd = guest_new(&ram);
    int32_t mem = guest_open(fd, 0);
    struct fault_row fault;
    CHECK_EQUAL(read_at(mem, 0, GUEST_SIZE - 8192, bytes, 8192, NULL), 0);
    CHECK(ftruncate(fd, GUEST_SIZE - 6000) == 0);
    CHECK_EQUAL(read_at(mem, 0, GUEST_SIZE - 8192, bytes, 8192, &fault), CA_F_SOURCE);
    CHECK_EQUAL(fault.address, GUEST_SIZE - 6000);
    /* Through page tables too, to the byte; and tables that are gone. */
    CHECK_EQUAL(read_at(mem, SPACE4, VIRT(GUEST_SIZE - 6000), bytes, 1, &fault), CA_F_SOURCE);
    CHECK_EQUAL(fault.level, 0);
    CHECK_EQUAL(read_at(mem, SPACE4, VIRT(GUEST_SIZE - 6001), bytes, 1, NULL), 0);
    CHECK(ftruncate(fd, 4096) == 0);
    CHECK_EQUAL(read_at(mem, SPACE4, VIRT(0), bytes, 1, &fault), CA_F_SOURCE);
    CHECK_EQUAL(fault.level, 4);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    close(fd);
}

/* Cut after a call has looked at its size: what the signal alone tells. */
static void cut_in_call(void) {
    uint8_t *ram, bytes[8192];
    int fd = guest_new(&ram);
    int32_t handle = guest_open(fd, CA_OPEN_WRITE);
    struct ca_mem *mem;
    uint64_t done, value;
    struct ca_fault fault;
    CHECK_EQUAL(ca_enter(handle, 0, &mem), CA_OK);
    CHECK(ftruncate(fd, 0x9000) == 0);
    CHECK_EQUAL(ca_phys_read(mem, 0x8f00, bytes, 8192, &done), CA_F_SOURCE);
    CHECK_EQUAL(done, 0x100);
    CHECK_EQUAL(ca_phys_write(mem, 0x8f00, bytes, 8192, &done), CA_F_SOURCE);
    CHECK_EQUAL(done, 0x100);
    CHECK_EQUAL(ca_phys_load64(mem, 0x9000, &value), CA_F_SOURCE);
    CHECK(!ca_load64(mem, SPACE4, VIRT(0x9000), &value, &fault));
    CHECK_EQUAL(fault.reason, CA_F_SOURCE);
    CHECK(!ca_load(mem, SPACE4, VIRT(0x8ff0), bytes, 32, &fault));
    CHECK_EQUAL(fault.address, VIRT(0x9000));
    ca_leave(mem);
    CHECK_EQUAL(ca_mem_close(handle), CA_OK);
    close(fd);
}

static atomic_int running;

static void *shrink_and_grow(void *file) {
    int fd = *(int *)file;
    while (atomic_load(&running) != 0) {
        if (ftruncate(fd, 4096) != 0 || ftruncate(fd, GUEST_SIZE) != 0) abort();
    }
    return NULL;
}

static void racing_file(void) {
    static uint8_t bytes[GUEST_SIZE];
    uint8_t *ram;
    int fd = guest_new(&ram);
    int32_t mem = guest_open(fd, 0);
    pthread_t thread;
    atomic_store(&running, 1);
    CHECK(pthread_create(&thread, NULL, shrink_and_grow, &fd) == 0);
    unsigned faulted = 0;
    /* On one busy processor it can take a while until the other thread gets between. */
    for (unsigned i = 0; i < 2000 || (faulted == 0 && i < 1000000); i++) {
        uint32_t reason = read_at(mem, 0, 0, bytes, GUEST_SIZE, NULL);
        CHECK(reason == 0 || reason == CA_F_SOURCE);
        faulted += reason != 0;
    }
    CHECK(faulted > 0);
    atomic_store(&running, 0);
    pthread_join(thread, NULL);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    close(fd);
}

static sigjmp_buf back;

static void theirs(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

/* A SIGBUS that is not ours goes where it went before: to another's handler, or it ends the process. */
static void others(void) {
    int fd = memfd_create("others", 0);
    CHECK(ftruncate(fd, 4096) == 0);
    volatile uint8_t *view = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(ftruncate(fd, 0) == 0);
    struct sigaction handler = {.sa_handler = theirs}, before;
    CHECK(sigaction(SIGBUS, &handler, &before) == 0);
    /* A listener that came later than us: we go in front of it again. */
    CHECK_EQUAL(ca_guard_arm(), CA_OK);
    uint64_t value;
    CHECK(ca_guard_load64(&value, (const void *)(uintptr_t)view) != 0);
    if (sigsetjmp(back, 1) == 0) {
        (void)view[0];
        CHECK(!"the handler was not called");
    }
    CHECK(sigaction(SIGBUS, &before, NULL) == 0);

    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        signal(SIGBUS, SIG_DFL);
        if (ca_guard_arm() != CA_OK) _exit(2);
        (void)view[0];
        _exit(3);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    close(fd);
}

void test_guard(void) {
    /* As the processor does it, and as one without AVX would. */
    const uint8_t vectors = ca_guard_vectors;
    copies();
    places();
    ca_guard_vectors = 0;
    copies();
    places();
    ca_guard_vectors = vectors;
    cut_file();
    cut_in_call();
    racing_file();
    others();
}
