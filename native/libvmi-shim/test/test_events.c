/* The ring between agent and consumer, and what programs may be and do. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "events_program.h"
#include "events_ring.h"
#include "test.h"

/* ---- Sleeping and waking: every record arrives, though the consumer sleeps whenever it can. ---- */

#define RACE_RECORDS 300000u
static int wake[2];

static void *produce(void *argument) {
    struct ca_producer *p = argument;
    for (uint64_t i = 0; i < RACE_RECORDS; i++) {
        uint32_t bytes = (CA_RECORD_WORDS + (uint32_t)(i % 7)) * 8, head[2] = {bytes / 8, (uint32_t)(i % 3)};
        uint64_t *to;
        while ((to = ca_producer_reserve(p, bytes)) == NULL) sched_yield();
        memcpy(&to[CA_RECORD_HEAD], head, 8);
        to[CA_RECORD_SERIAL] = i;
        ca_producer_count(p, head[1], false);
        if (ca_producer_publish(p, bytes)) CHECK(write(wake[1], "w", 1) == 1);
        /* Now and then long enough for the consumer to fall asleep, also on one processor or beside others' work. */
        if (i % 64 == 63) sched_yield();
        if (i % 4096 == 4095) usleep(200);
    }
    return NULL;
}

static void races(void) {
    static _Alignas(8) uint8_t buffer[1 << 16];
    struct ca_producer producer;
    int fd;
    int32_t ring = ca_ring_create(CA_RING_MIN, &fd);
    CHECK(ring > 0 && pipe(wake) == 0);
    CHECK_EQUAL(ca_producer_open(&producer, fd), CA_OK);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, produce, &producer) == 0);
    uint64_t expected = 0, sleeps = 0;
    while (expected < RACE_RECORDS) {
        int32_t got = ca_ring_drain(ring, buffer, sizeof buffer);
        CHECK(got >= 0);
        for (int32_t at = 0; at < got;) {
            uint32_t head[2];
            uint64_t serial;
            memcpy(head, buffer + at, 8);
            memcpy(&serial, buffer + at + CA_RECORD_SERIAL * 8, 8);
            if (serial != expected || head[1] != serial % 3) CHECK_EQUAL(serial, expected);
            expected++;
            at += (int32_t)head[0] * 8;
        }
        if (got > 0) continue;
        /* A lost wake would hang here: the alarm of the process ends the test. */
        char byte;
        sleeps++;
        CHECK(read(wake[0], &byte, 1) == 1);
    }
    pthread_join(thread, NULL);
    CHECK(sleeps > 10);
    uint64_t counts[2];
    CHECK_EQUAL(ca_ring_counts(ring, 1, counts), CA_OK);
    CHECK_EQUAL(counts[0], 0);
    CHECK_EQUAL(counts[1], RACE_RECORDS / 3);
    ca_producer_close(&producer);
    CHECK_EQUAL(ca_ring_close(ring), CA_OK);
    CHECK_EQUAL(ca_ring_close(ring), CA_E_HANDLE);
    CHECK_EQUAL(ca_ring_drain(ring, buffer, sizeof buffer), CA_E_HANDLE);
    close(fd);
    close(wake[0]);
    close(wake[1]);
}

static void put(struct ca_producer *p, uint32_t words) {
    uint64_t *to = ca_producer_reserve(p, words * 8);
    const uint32_t head[2] = {words, 0};
    CHECK(to != NULL);
    memset(to, 0, words * 8);
    memcpy(to, head, 8);
    ca_producer_publish(p, words * 8);
}

static void distrusts(void) {
    static _Alignas(8) uint8_t buffer[1 << 16];
    struct ca_producer p;
    int fd, other = memfd_create("other", MFD_ALLOW_SEALING);
    int32_t ring = ca_ring_create(CA_RING_MIN, &fd);
    CHECK_EQUAL(ca_ring_create(CA_RING_MIN + 8, &other), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_ring_create(CA_RING_MAX * 2, &other), CA_E_ARGUMENT);
    /* Not sealed: it could shrink under the agent. */
    CHECK(ftruncate(other, CA_RING_HEADER + CA_RING_MIN) == 0);
    CHECK_EQUAL(ca_producer_open(&p, other), CA_E_ARGUMENT);
    close(other);
    CHECK_EQUAL(ca_producer_open(&p, fd), CA_OK);
    /* Full: nothing is overwritten, and a consumer that lies about its tail gets no room. */
    uint32_t records = 0;
    while (ca_producer_reserve(&p, 64) != NULL) put(&p, 8), records++;
    CHECK_EQUAL(records, CA_RING_MIN / 64);
    atomic_store(&p.shared->tail, p.head + 8);
    CHECK(ca_producer_reserve(&p, 64) == NULL);
    atomic_store(&p.shared->tail, UINT64_MAX - 7);
    CHECK(ca_producer_reserve(&p, 64) == NULL);
    atomic_store(&p.shared->tail, 12);
    CHECK(ca_producer_reserve(&p, 64) == NULL);
    atomic_store(&p.shared->tail, 0);
    CHECK_EQUAL(ca_ring_drain(ring, buffer, 32), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_ring_drain(ring, buffer, 130), 128);
    CHECK_EQUAL(ca_ring_drain(ring, buffer, sizeof buffer), CA_RING_MIN - 128);
    CHECK_EQUAL(ca_ring_drain(ring, buffer, sizeof buffer), 0);
    CHECK_EQUAL(atomic_load(&p.shared->sleeping), 1);
    /* A record that does not fit before the end goes to the beginning. */
    for (int i = 0; i < 3000; i++) {
        put(&p, 6 + (uint32_t)i % 300);
        CHECK_EQUAL(ca_ring_drain(ring, buffer, sizeof buffer), (6 + i % 300) * 8);
    }
    /* A producer that writes nonsense ends the ring. */
    struct {
        uint64_t head;
        uint32_t words, program;
    } lies[] = {{CA_RING_MIN + 8, 8, 0}, {12, 8, 0}, {64, 0, 0}, {64, 9, 0}, {64, 8, 64}, {64, 1, 1}, {8, 1, 0}};
    for (unsigned i = 0; i < sizeof lies / sizeof *lies; i++) {
        int lied;
        int32_t damaged = ca_ring_create(CA_RING_MIN, &lied);
        struct ca_producer liar;
        CHECK_EQUAL(ca_producer_open(&liar, lied), CA_OK);
        memcpy(liar.data, &lies[i].words, 8);
        atomic_store(&liar.shared->head, lies[i].head);
        CHECK_EQUAL(ca_ring_drain(damaged, buffer, sizeof buffer), CA_E_SOURCE);
        CHECK_EQUAL(ca_ring_drain(damaged, buffer, sizeof buffer), CA_E_SOURCE);
        ca_producer_close(&liar);
        ca_ring_close(damaged);
        close(lied);
    }
    ca_producer_close(&p);
    ca_ring_close(ring);
    close(fd);
}

/* ---- Programs. ---- */

struct draft {
    uint64_t words[CA_PROGRAM_WORDS + 2 * (CA_PREDICATE_MAX + 1) + CA_CAPTURE_WORDS * (CA_CAPTURES_MAX + 1)];
    uint32_t count;
};

static struct draft draft(uint64_t trap, uint64_t argument, uint64_t space) {
    struct draft d = {.words = {CA_EVENTS_VERSION, trap, argument, space}, .count = CA_PROGRAM_WORDS};
    return d;
}

static void operation(struct draft *d, uint64_t code, uint64_t operand) {
    d->words[CA_PROGRAM_PREDICATE]++;
    d->words[d->count++] = code;
    d->words[d->count++] = operand;
}

static void capture(struct draft *d, uint64_t kind, uint64_t from, uint64_t bytes, uint64_t hops, uint64_t o0, uint64_t o1) {
    const uint64_t words[CA_CAPTURE_WORDS] = {kind, from, bytes, hops, o0, o1, 0, 0};
    d->words[CA_PROGRAM_CAPTURES]++;
    memcpy(d->words + d->count, words, sizeof words);
    d->count += CA_CAPTURE_WORDS;
}

static int32_t parse(const struct draft *d, struct ca_program_data *p) { return ca_program_parse(p, d->words, d->count * 8); }

static bool holds(const struct draft *d, const struct ca_event *event, struct ca_mem *mem) {
    struct ca_program_data p;
    CHECK_EQUAL(parse(d, &p), CA_OK);
    return ca_program_matches(&p, event, mem);
}

static void refuses(void) {
    struct ca_program_data p;
    struct draft good = draft(CA_TRAP_REGISTER, 3, 0), d = good;
    CHECK_EQUAL(parse(&good, &p), CA_OK);
    CHECK_EQUAL(p.bytes, CA_RECORD_WORDS * 8);
    for (uint32_t size = 0; size < CA_PROGRAM_WORDS * 8; size++) CHECK_EQUAL(ca_program_parse(&p, good.words, size), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_program_parse(&p, good.words, CA_PROGRAM_WORDS * 8 + 8), CA_E_ARGUMENT);
    for (uint32_t word = 0; word < CA_PROGRAM_WORDS; word++) {
        d = good;
        d.words[word] = 1ull << 40;
        CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
    }
    d = draft(CA_TRAP_BREAKPOINT, VA_DIRECT, 0);
    CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
    d = draft(CA_TRAP_BREAKPOINT, VA_DIRECT, ROOT4 | 6);
    CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
    d = draft(CA_TRAP_CPUID, 0, 0);
    operation(&d, CA_OP_FIELD, CA_FIELD_NEW_VALUE);
    CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
    const uint64_t lone[] = {CA_OP_ADD, CA_OP_NOT, CA_OP_LOAD, 0, CA_OP_LAST + 1, UINT64_MAX};
    for (unsigned i = 0; i < sizeof lone / sizeof *lone; i++) {
        d = good;
        operation(&d, lone[i], 8);
        CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
    }
    d = good;
    for (int i = 0; i < CA_STACK_MAX; i++) operation(&d, CA_OP_CONSTANT, 1);
    CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT); /* leaves eight */
    for (int i = 1; i < CA_STACK_MAX; i++) operation(&d, CA_OP_ADD, 0);
    CHECK_EQUAL(parse(&d, &p), CA_OK);
    d = good;
    for (int i = 0; i <= CA_STACK_MAX; i++) operation(&d, CA_OP_CONSTANT, 1);
    for (int i = 0; i < CA_STACK_MAX; i++) operation(&d, CA_OP_ADD, 0);
    CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT); /* nine deep */
    d = good;
    for (int i = 0; i <= CA_PREDICATE_MAX; i++) operation(&d, i == 0 ? CA_OP_CONSTANT : CA_OP_NOT, 1);
    CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
    const uint64_t captures[][4] = {{0, 0, 8, 0}, {5, 0, 8, 0}, {CA_CAPTURE_REGISTER, CA_REG_LAST + 1, 8, 0}, {CA_CAPTURE_MEMORY, 0, 0, 0},
                                    {CA_CAPTURE_MEMORY, 0, 257, 0}, {CA_CAPTURE_MEMORY, 0, 8, CA_HOPS_MAX + 1}, {CA_CAPTURE_STRING, 99, 8, 0},
                                    {CA_CAPTURE_FIELD, CA_FIELD_LEAF, 8, 0}, {CA_CAPTURE_REGISTER, 0, 8, 1}};
    for (unsigned i = 0; i < sizeof captures / sizeof *captures; i++) {
        d = good;
        capture(&d, captures[i][0], captures[i][1], captures[i][2], captures[i][3], 0, 0);
        CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
    }
    d = good;
    for (int i = 0; i < CA_CAPTURES_MAX; i++) capture(&d, CA_CAPTURE_MEMORY, 0, 256, 3, 0, 0);
    CHECK_EQUAL(parse(&d, &p), CA_OK);
    CHECK_EQUAL(p.bytes, CA_RECORD_BYTES_MAX);
    capture(&d, CA_CAPTURE_REGISTER, 0, 0, 0, 0, 0);
    CHECK_EQUAL(parse(&d, &p), CA_E_ARGUMENT);
}

static void evaluates(void) {
    uint8_t *ram;
    int fd = guest_new(&ram);
    guest_fill(ram);
    int32_t handle = guest_open(fd, 0);
    struct ca_mem *mem;
    CHECK_EQUAL(ca_enter(handle, 0, &mem), CA_OK);
    struct ca_event event = {.trap = CA_TRAP_REGISTER};
    event.registers[CA_REG_CR0] = 1ull << 31;
    event.registers[CA_REG_CR3] = ROOT4;
    event.registers[CA_REG_EFER] = 1ull << 10;
    event.registers[CA_REG_RDI] = VIRT(0x14000);
    event.fields[CA_FIELD_NEW_VALUE] = 7;
    guest_put(ram, 0x14000, VIRT(0x14ff0));
    guest_put(ram, 0x14ff0, 0x6f6c6c6568ull); /* "hello" */
    guest_put(ram, 0x14ff8, 0x1122334455667788ull);

    struct draft d = draft(CA_TRAP_REGISTER, 3, 0);
    operation(&d, CA_OP_FIELD, CA_FIELD_NEW_VALUE);
    operation(&d, CA_OP_CONSTANT, 8);
    operation(&d, CA_OP_LESS, 0);
    CHECK(holds(&d, &event, NULL));
    operation(&d, CA_OP_NOT, 0);
    CHECK(!holds(&d, &event, NULL));
    /* *rdi + 8 holds ...88, read as one byte; what can not be read is false, also behind a NOT. */
    d = draft(CA_TRAP_REGISTER, 3, 0);
    operation(&d, CA_OP_REGISTER, CA_REG_RDI);
    operation(&d, CA_OP_LOAD, 8);
    operation(&d, CA_OP_CONSTANT, 8);
    operation(&d, CA_OP_ADD, 0);
    operation(&d, CA_OP_LOAD, 1);
    operation(&d, CA_OP_CONSTANT, 0x88);
    operation(&d, CA_OP_EQUAL, 0);
    CHECK(holds(&d, &event, mem));
    CHECK(!holds(&d, &event, NULL));
    operation(&d, CA_OP_NOT, 0);
    CHECK(!holds(&d, &event, NULL));
    d = draft(CA_TRAP_REGISTER, 3, 0);
    operation(&d, CA_OP_CONSTANT, 1);
    operation(&d, CA_OP_CONSTANT, 64);
    operation(&d, CA_OP_SHIFT_LEFT, 0);
    CHECK(!holds(&d, &event, NULL));

    /* A word through a pointer, a string, and bytes that end where memory does. */
    struct ca_program_data p;
    uint64_t out[CA_RECORD_BYTES_MAX / 8];
    uint32_t head[2];
    d = draft(CA_TRAP_REGISTER, 3, 0);
    capture(&d, CA_CAPTURE_REGISTER, CA_REG_RDI, 8, 0, 0, 0);
    capture(&d, CA_CAPTURE_MEMORY, CA_REG_RDI, 8, 1, 0, 8);
    capture(&d, CA_CAPTURE_STRING, CA_REG_RDI, 64, 1, 0, 0);
    capture(&d, CA_CAPTURE_STRING, CA_REG_RDI, 3, 1, 0, 0);
    capture(&d, CA_CAPTURE_MEMORY, CA_REG_RDI, 256, 0, GUEST_SIZE - 0x14000 - 16, 0);
    capture(&d, CA_CAPTURE_MEMORY, CA_REG_RAX, 8, 1, 0, 0);
    CHECK_EQUAL(parse(&d, &p), CA_OK);
    ca_program_capture(&p, &event, mem, out);
    const uint64_t *at = out;
    CHECK_EQUAL(*at++, VIRT(0x14000));
    memcpy(head, at, 8);
    CHECK_EQUAL(head[0], 8);
    CHECK_EQUAL(head[1], CA_F_NONE);
    CHECK_EQUAL(at[1], 0x1122334455667788ull);
    at += 2;
    memcpy(head, at, 8);
    CHECK_EQUAL(head[0], 5);
    CHECK(memcmp(at + 1, "hello\0\0\0", 8) == 0 && at[2] == 0);
    at += 1 + 8;
    memcpy(head, at, 8);
    CHECK_EQUAL(head[0], 3);
    CHECK(memcmp(at + 1, "hel", 4) == 0);
    at += 2;
    memcpy(head, at, 8);
    CHECK_EQUAL(head[0], 16);
    CHECK(head[1] != CA_F_NONE);
    at += 1 + 32;
    memcpy(head, at, 8);
    CHECK_EQUAL(head[0], 0);
    CHECK(head[1] != CA_F_NONE);
    at += 2;
    CHECK_EQUAL((at - out) * 8 + CA_RECORD_WORDS * 8, p.bytes);
    /* Without long mode there are no tables we know. */
    event.registers[CA_REG_EFER] = 0;
    ca_program_capture(&p, &event, mem, out);
    memcpy(head, out + 1, 8);
    CHECK_EQUAL(head[1], CA_F_SOURCE);
    ca_leave(mem);
    ca_mem_close(handle);
    munmap(ram, GUEST_SIZE);
    close(fd);

    struct ca_rate rate = {0, 0};
    uint64_t now = 1000000000000ull;
    int taken = 0;
    for (int i = 0; i < 100; i++) taken += ca_rate_take(&rate, 10, now);
    CHECK_EQUAL(taken, 10);
    for (int i = 0; i < 100; i++) taken += ca_rate_take(&rate, 10, now += 10000000);
    CHECK_EQUAL(taken, 20);
}

void test_events(void) {
    alarm(120);
    races();
    alarm(0);
    distrusts();
    refuses();
    evaluates();
}
