/* The LibVMI backend, over a library of ours with its ABI. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cloudapp_libvmi.h"
#include "test.h"

#define STUB "build/stub-libvmi/libvmi.so.0"
#define SIZE (8u << 20)

static unsigned *counter(const char *name) {
    static void *stub;
    if (stub == NULL) stub = dlopen(STUB, RTLD_NOW | RTLD_LOCAL);
    CHECK(stub != NULL);
    unsigned *found = dlsym(stub, name);
    CHECK(found != NULL);
    return found;
}

static bool says(const char *what) {
    char text[512];
    ca_last_error(text, sizeof text);
    return strstr(text, what) != NULL;
}

static void loading(const char *ram) {
    CHECK_EQUAL(ca_libvmi_open(NULL, CA_LIBVMI_FILE, ram), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_libvmi_open(STUB, CA_LIBVMI_FILE, NULL), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_libvmi_open(STUB, 9, ram), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_libvmi_open("/no/libvmi.so", CA_LIBVMI_FILE, ram), CA_E_UNSUPPORTED);
    CHECK(says("CLOUDAPP_LIBVMI"));
    CHECK_EQUAL(ca_libvmi_open("libc.so.6", CA_LIBVMI_FILE, ram), CA_E_UNSUPPORTED);
    CHECK(says("has no vmi_init"));
    setenv("STUB_LIBVMI_EVENTS", "8", 1);
    CHECK_EQUAL(ca_libvmi_open(STUB, CA_LIBVMI_FILE, ram), CA_E_UNSUPPORTED);
    CHECK(says("version 8"));
    unsetenv("STUB_LIBVMI_EVENTS");
    CHECK_EQUAL(ca_libvmi_open(STUB, CA_LIBVMI_FILE, "/no/file"), CA_E_OPEN);
    CHECK(says("failed to open file /no/file"));
    CHECK_EQUAL(ca_libvmi_open(STUB, CA_LIBVMI_XEN_NAME, "other"), CA_E_OPEN);
    CHECK(says("no such domain"));
    CHECK_EQUAL(ca_libvmi_open(STUB, CA_LIBVMI_XEN_ID, "7x"), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_libvmi_open(STUB, CA_LIBVMI_XEN_ID, "-7"), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_libvmi_open("other.so", CA_LIBVMI_FILE, ram), CA_E_UNSUPPORTED);
    CHECK(says("one at a time"));
    CHECK_EQUAL(*counter("stub_instances"), 0);
}

/* What LibVMI says must not come out where this program's own output goes. */
static void quiet(const char *ram) {
    int heard = memfd_create("heard", 0), saved = dup(1);
    fflush(stdout);
    CHECK(heard >= 0 && saved >= 0 && dup2(heard, 1) == 1);
    printf("before\n");
    int32_t mem = ca_libvmi_open(STUB, CA_LIBVMI_FILE, ram);
    uint64_t word;
    uint32_t reason = read_at(mem, 0, SIZE - 8, &word, 8, NULL);
    int32_t closed = ca_mem_close(mem);
    printf("after\n");
    fflush(stdout);
    dup2(saved, 1);
    close(saved);
    char text[256] = "";
    ssize_t got = pread(heard, text, sizeof text - 1, 0);
    close(heard);
    CHECK(mem > 0 && reason == 0 && closed == CA_OK);
    CHECK_EQUAL(word, SIZE - 8);
    CHECK(got == 13 && strcmp(text, "before\nafter\n") == 0);
}

static void memory(const char *ram) {
    int32_t mem = ca_libvmi_open(STUB, CA_LIBVMI_FILE, ram);
    CHECK(mem > 0);
    CHECK_EQUAL(ca_mem_end(mem), SIZE);
    CHECK_EQUAL(ca_libvmi_vcpus(mem), 0);
    uint64_t words[2048];
    struct fault_row fault;
    /* Over page ends, and at an odd place. */
    CHECK_EQUAL(read_at(mem, 0, 0x1ff8, words, sizeof words, NULL), 0);
    for (unsigned i = 0; i < 2048; i++) CHECK_EQUAL(words[i], 0x1ff8 + i * 8);
    CHECK_EQUAL(read_at(mem, 0, SIZE - 4, words, 8, &fault), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(read_at(mem, 0, 1ull << 51, words, 8, &fault), CA_F_OUTSIDE_RAM);
    struct cursor cursor = {{0}};
    uint64_t status[CA_STATUS_WORDS];
    CHECK_EQUAL(ca_write(mem, 0, 1000, 0, 0, "x", 1, &cursor, status), CA_E_READONLY);
    CHECK_EQUAL(ca_mem_revoke(mem), CA_OK);
    CHECK_EQUAL(*counter("stub_instances"), 0);
    CHECK_EQUAL(ca_libvmi_vcpus(mem), CA_E_REVOKED);
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_OK);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
}

static void freshness(const char *ram, int fd) {
    int32_t mem = ca_libvmi_open(STUB, CA_LIBVMI_FILE, ram);
    uint64_t word, changed = 0x1234;
    CHECK_EQUAL(read_at(mem, 0, 0x3000, &word, 8, NULL), 0);
    CHECK_EQUAL(word, 0x3000);
    CHECK(pwrite(fd, &changed, 8, 0x3000) == 8);
    CHECK_EQUAL(read_at(mem, 0, 0x3000, &word, 8, NULL), 0);
    CHECK_EQUAL(word, 0x1234);

    /* A frame that was not there comes back although LibVMI keeps it as failed. */
    setenv("STUB_LIBVMI_HOLE", "5000-6000", 1);
    CHECK_EQUAL(read_at(mem, 0, 0x5000, &word, 8, NULL), CA_F_OUTSIDE_RAM);
    unsetenv("STUB_LIBVMI_HOLE");
    CHECK_EQUAL(read_at(mem, 0, 0x5000, &word, 8, NULL), 0);

    unsigned pages = *counter("stub_page_flushes"), translations = *counter("stub_translation_flushes");
    CHECK_EQUAL(ca_mem_invalidate(mem), CA_OK);
    CHECK_EQUAL(*counter("stub_page_flushes"), pages + 1);
    CHECK_EQUAL(*counter("stub_translation_flushes"), translations + 1);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
}

/* Scans cross holes by what was surveyed, and ask for none of it. */
static void scanning(const char *ram) {
    setenv("STUB_LIBVMI_HOLE", "200000-600000", 1);
    int32_t mem = ca_libvmi_open(STUB, CA_LIBVMI_FILE, ram);
    struct {
        uint32_t length, zero;
        uint8_t bytes[256];
    } pattern = {8, 0, {0}};
    uint64_t wanted = 0x700010, rows[64], status[CA_STATUS_WORDS];
    memcpy(pattern.bytes, &wanted, 8);
    struct cursor cursor = {{0}};
    uint64_t found = 0;
    unsigned reads = *counter("stub_reads");
    int32_t result;
    do {
        result = ca_search(mem, 0, 1000000, 0, 0, SIZE - 1, &pattern, 1, 8, 0, 16, rows, 32, &cursor, status);
        CHECK(result >= 0);
        if (status[0] > 0) {
            CHECK_EQUAL(rows[0], 0x700010);
            found += status[0];
        }
    } while (result == CA_MORE);
    CHECK_EQUAL(found, 1);
    CHECK(*counter("stub_reads") - reads < 1024 + 64);
    uint64_t word;
    unsigned flushes = *counter("stub_page_flushes");
    CHECK_EQUAL(read_at(mem, 0, 0x400000, &word, 8, NULL), CA_F_OUTSIDE_RAM);
    CHECK_EQUAL(*counter("stub_page_flushes"), flushes);
    unsetenv("STUB_LIBVMI_HOLE");
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
}

static void xen(const char *ram, int32_t other) {
    setenv("STUB_LIBVMI_RAM", ram, 1);
    int32_t mem = ca_libvmi_open(STUB, CA_LIBVMI_XEN_NAME, "stub"), same = ca_libvmi_open(STUB, CA_LIBVMI_XEN_ID, "7");
    CHECK(mem > 0 && same > 0);
    CHECK_EQUAL(ca_libvmi_vcpus(mem), 2);
    uint64_t words[CA_LIBVMI_VCPU_WORDS];
    static const uint8_t numbers[12] = {8, 7, 9, 18, 20, 21, 74, 51, 68, 55, 45, 56};
    CHECK_EQUAL(ca_libvmi_vcpu(mem, 1, words), CA_OK);
    for (int i = 0; i < 12; i++) CHECK_EQUAL(words[i], 0xffffffff00010000ull | numbers[i]);
    CHECK_EQUAL(words[13], 0xfff);
    CHECK_EQUAL(ca_libvmi_vcpu(mem, 2, words), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_libvmi_vcpu(mem, 0, NULL), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_libvmi_vcpu(other, 0, words), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_mem_close(mem), CA_OK);
    CHECK_EQUAL(ca_libvmi_vcpus(mem), CA_E_HANDLE);
    CHECK_EQUAL(ca_mem_close(same), CA_OK);
}

static void *reader(void *handle) {
    uint64_t word;
    for (unsigned i = 0; i < 2000; i++) {
        uint64_t at = i * 4104 % (SIZE - 8) & ~7ull;
        if (at == 0x3000) continue;
        if (read_at(*(int32_t *)handle, 0, at, &word, 8, NULL) != 0 || word != at) return handle;
    }
    return NULL;
}

static void threads(const char *ram) {
    int32_t mems[2] = {ca_libvmi_open(STUB, CA_LIBVMI_FILE, ram), ca_libvmi_open(STUB, CA_LIBVMI_FILE, ram)};
    pthread_t running[4];
    void *failed;
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&running[i], NULL, reader, &mems[i % 2]) == 0);
    for (int i = 0; i < 4; i++) {
        CHECK(pthread_join(running[i], &failed) == 0);
        CHECK(failed == NULL);
    }
    for (int i = 0; i < 2; i++) CHECK_EQUAL(ca_mem_close(mems[i]), CA_OK);
}

void test_libvmi(void) {
    char ram[64];
    int fd = memfd_create("ram", 0);
    CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
    snprintf(ram, sizeof ram, "/proc/self/fd/%d", fd);
    uint64_t *words = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(words != MAP_FAILED);
    for (uint64_t i = 0; i < SIZE / 8; i++) words[i] = i * 8;
    loading(ram);
    quiet(ram);
    memory(ram);
    freshness(ram, fd);
    scanning(ram);
    int32_t other = ca_mem_open_file(ram, NULL, 0, 0);
    xen(ram, other);
    CHECK_EQUAL(ca_mem_close(other), CA_OK);
    threads(ram);
    CHECK_EQUAL(*counter("stub_instances"), 0);
    munmap(words, SIZE);
    close(fd);
}
