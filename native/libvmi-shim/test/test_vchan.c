/* The rings of a vchan over plain memory, with a peer that lies. */
#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include "test.h"
#include "vchan.h"

static int32_t ends[2];
static uint32_t info[2 * CA_VCHAN_INFO_WORDS], status[CA_VCHAN_STATUS_WORDS];

static void open_pair(uint32_t bytes) { CHECK_EQUAL(ca_vchan_pair(bytes, ends, info), CA_OK); }

static void close_pair(void) {
    CHECK_EQUAL(ca_vchan_close(ends[0]), CA_OK);
    CHECK_EQUAL(ca_vchan_close(ends[1]), CA_OK);
    CHECK_EQUAL(ca_vchan_close(ends[0]), CA_E_HANDLE);
}

static int32_t turn(int end, const void *out, uint32_t out_bytes, void *in, uint32_t in_bytes) {
    return ca_vchan_turn(ends[end], 0, 0, out, out_bytes, in, in_bytes, status);
}

/* Whether an end was woken since the last look. */
static bool woken(int end) {
    uint64_t count;
    return read((int)info[end * CA_VCHAN_INFO_WORDS], &count, sizeof count) == (ssize_t)sizeof count;
}

static void carries(uint32_t bytes) {
    static uint8_t sent[1 << 21], got[1 << 21];
    open_pair(bytes);
    uint32_t size = info[CA_VCHAN_INFO_WORDS + 2];
    CHECK(size >= bytes && info[1] == size);
    for (size_t i = 0; i < sizeof sent; i++) sent[i] = (uint8_t)(i * 7 + (i >> 8));
    /* Every chunk size of small ones, then some around the size of the ring: each wraps somewhere. */
    uint32_t steps = size <= 4096 ? size + 3 : 600;
    for (uint32_t step = 1; step <= steps; step++) {
        uint32_t chunk = size <= 4096 ? step : step <= 300 ? step : size - 300 + (step - 300) + 2;
        uint32_t put = 0, taken = 0;
        while (taken < chunk) {
            CHECK_EQUAL(turn(1, sent + put, chunk - put, NULL, 0), CA_OK);
            put += status[0];
            CHECK_EQUAL(turn(0, NULL, 0, got + taken, chunk), CA_OK);
            taken += status[1];
            CHECK(status[0] == 0 && taken == put);
        }
        CHECK(memcmp(sent, got, chunk) == 0);
    }
    close_pair();
}

static void wakes_when_asked(void) {
    uint8_t byte = 1, buffer[4096];
    open_pair(1024);
    /* Nobody waits: nobody is woken. */
    CHECK_EQUAL(turn(0, &byte, 1, NULL, 0), CA_OK);
    CHECK(!woken(1) && !woken(0));
    CHECK_EQUAL(turn(1, NULL, 0, buffer, sizeof buffer), CA_OK);
    CHECK_EQUAL(status[1], 1);
    CHECK(!woken(0));
    /* The reader found nothing: it is woken once. */
    CHECK_EQUAL(turn(1, NULL, 0, buffer, sizeof buffer), CA_OK);
    CHECK_EQUAL(status[1], 0);
    CHECK_EQUAL(turn(0, &byte, 1, NULL, 0), CA_OK);
    CHECK(woken(1));
    CHECK_EQUAL(turn(0, &byte, 1, NULL, 0), CA_OK);
    CHECK(!woken(1));
    /* The writer found no room: it is woken when there is. */
    uint32_t size = info[2];
    CHECK_EQUAL(turn(0, buffer, size, NULL, 0), CA_OK);
    CHECK_EQUAL(status[0], size - 2);
    CHECK_EQUAL(turn(1, NULL, 0, buffer, 1), CA_OK);
    CHECK(woken(0));
    CHECK_EQUAL(turn(1, NULL, 0, buffer, 1), CA_OK);
    CHECK(!woken(0));
    /* What was written before the end can be read after it. */
    CHECK_EQUAL(ca_vchan_close(ends[0]), CA_OK);
    CHECK(woken(1));
    CHECK_EQUAL(turn(1, NULL, 0, buffer, 10), CA_OK);
    CHECK_EQUAL(status[1], 10);
    CHECK_EQUAL(status[2], CA_VCHAN_GONE);
    CHECK_EQUAL(status[3], size - 12);
    CHECK_EQUAL(ca_vchan_close(ends[1]), CA_OK);
}

/* Each lie of the peer about an index ends the vchan for this end, with an error, for good. */
static void refuses(int which, uint32_t value) {
    uint8_t buffer[8192] = {0};
    open_pair(4096);
    CHECK_EQUAL(turn(0, buffer, 100, NULL, 0), CA_OK);
    CHECK_EQUAL(turn(1, buffer, 50, buffer, 20), CA_OK);
    struct ca_vchan_page *page = ca_vchan_behind(ends[0])->page;
    _Atomic uint32_t *indexes[4] = {&page->left.cons, &page->left.prod, &page->right.cons, &page->right.prod};
    atomic_store(indexes[which], value);
    CHECK_EQUAL(turn(0, buffer, sizeof buffer, buffer, sizeof buffer), CA_E_PROTOCOL);
    atomic_store(indexes[which], 0);
    CHECK_EQUAL(turn(0, buffer, 1, buffer, 1), CA_E_PROTOCOL);
    close_pair();
}

static void refuses_layouts(void) {
    for (uint32_t left = 0; left < 40; left++)
        for (uint32_t right = 0; right < 40; right++) {
            bool fine = left >= 10 && left <= 20 && right >= 10 && right <= 20 && !(left == right && left < 12) &&
                        !((left == 10 || right == 10) && (left == 20 || right == 20));
            CHECK_EQUAL(ca_vchan_layout(left, right), fine ? CA_OK : CA_E_PROTOCOL);
        }
    for (uint32_t a = 1; a <= CA_VCHAN_RING_MAX; a = a * 2 + 1)
        for (uint32_t b = 1; b <= CA_VCHAN_RING_MAX; b = b * 2 + 1) {
            uint32_t left, right;
            ca_vchan_orders(a, b, &left, &right);
            CHECK_EQUAL(ca_vchan_layout(left, right), CA_OK);
            CHECK(1u << left >= a && 1u << right >= b);
        }
}

static _Atomic bool stop, scribbling;

static void *scribble(void *argument) {
    struct ca_vchan_page *page = argument;
    uint32_t state = 1;
    while (!atomic_load(&stop)) {
        state = state * 1664525 + 1013904223;
        /* Mostly plausible, so that copies happen in between. */
        uint32_t value = state >> 28 == 0 ? state : state >> 20;
        _Atomic uint32_t *indexes[4] = {&page->left.cons, &page->left.prod, &page->right.cons, &page->right.prod};
        atomic_store(indexes[state >> 8 & 3], value);
        atomic_store(&page->cli_live, (uint8_t)(state >> 12 & 3));
        page->left_order = (uint16_t)state;
        page->grants[0] = state;
        atomic_store(&page->srv_notify, (uint8_t)(state >> 16));
        atomic_store(&scribbling, true);
    }
    return NULL;
}

/* A peer that writes everywhere in the shared page all the time: under ASan, a step outside a ring ends the test. */
static void survives_scribbling(void) {
    uint8_t *in = malloc(6000), *out = calloc(1, 6000);
    unsigned broken = 0;
    for (int round = 0; round < 100; round++) {
        open_pair(round % 2 ? 1024 : 4096);
        struct ca_vchan *vchan = ca_vchan_behind(ends[0]);
        pthread_t thread;
        atomic_store(&stop, false);
        atomic_store(&scribbling, false);
        CHECK(pthread_create(&thread, NULL, scribble, vchan->page) == 0);
        while (!atomic_load(&scribbling)) sched_yield();
        for (int i = 0; i < 100000; i++) {
            int32_t result = ca_vchan_turn(ends[0], 0, 5, out, 6000, in, 6000, status);
            CHECK(result == CA_OK || result == CA_E_PROTOCOL);
            if (result == CA_OK) CHECK(status[0] <= 6000 && status[1] <= 6000 && status[2] <= 2);
            if (result != CA_OK) {
                broken++;
                break;
            }
        }
        atomic_store(&stop, true);
        pthread_join(thread, NULL);
        close_pair();
    }
    CHECK(broken > 50);
    free(in), free(out);
}

/* Looks for a peer that does not come for ever shorter, until one does. */
static void learns_whether_to_spin(void) {
    uint8_t byte = 1, buffer[64];
    open_pair(1024);
    struct ca_vchan *vchan = ca_vchan_behind(ends[0]);
    for (uint32_t i = 1; i <= 6; i++) {
        CHECK_EQUAL(ca_vchan_turn(ends[0], 0, 100, NULL, 0, buffer, sizeof buffer, status), CA_OK);
        CHECK_EQUAL(vchan->doubt, i < 4 ? i : 4);
        CHECK(i > 4 ? status[5] == 0 : status[5] >= (100u >> (i - 1)));
        CHECK(vchan->slept != 0);
    }
    /* Long after it went to sleep, and soon after. */
    for (int soon = 0; soon < 2; soon++) {
        CHECK_EQUAL(turn(1, &byte, 1, NULL, 0), CA_OK);
        vchan->slept = soon ? ca_now() : 1;
        CHECK_EQUAL(ca_vchan_turn(ends[0], CA_VCHAN_EVENT, 10000, NULL, 0, buffer, sizeof buffer, status), CA_OK);
        CHECK_EQUAL(status[1], 1);
        CHECK_EQUAL(vchan->doubt, soon ? 0 : 4);
    }
    close_pair();
}

static void *sip(void *unused) {
    uint8_t byte;
    uint32_t mine[CA_VCHAN_STATUS_WORDS];
    while (!atomic_load(&stop)) ca_vchan_turn(ends[1], 0, 0, NULL, 0, &byte, 1, mine);
    return unused;
}

/* A peer that takes a byte at a time keeps no thread spinning. */
static void gives_up_on_one_who_sips(void) {
    static uint8_t much[1 << 20];
    open_pair(1024);
    /* The first turn finds the ring full. */
    CHECK_EQUAL(turn(0, much, 2048, NULL, 0), CA_OK);
    pthread_t thread;
    atomic_store(&stop, false);
    CHECK(pthread_create(&thread, NULL, sip, NULL) == 0);
    for (int i = 0; i < 20; i++) {
        CHECK_EQUAL(ca_vchan_turn(ends[0], 0, 100, much, sizeof much, NULL, 0, status), CA_OK);
        CHECK(status[0] < sizeof much);
    }
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
    close_pair();
}

static void checks_arguments(void) {
    CHECK_EQUAL(ca_vchan_pair(1000, ends, info), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_vchan_pair(2u << 20, ends, info), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_vchan_serve(1, 10, 4096, info), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_vchan_turn(4711, 0, 0, NULL, 0, NULL, 0, status), CA_E_HANDLE);
    CHECK_EQUAL(ca_grants_share(1, 0, 0, info), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_grants_share(1, 0, CA_GRANTS_MAX + 1, info), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_grants_map(40000, 0, 1, info), CA_E_ARGUMENT);
    CHECK_EQUAL(ca_grants_read(1, 0, info, 1), CA_E_HANDLE);
    if (access("/dev/xen/evtchn", F_OK) != 0) {
        uint32_t port;
        CHECK_EQUAL(ca_evtchn_open(0, CA_EVTCHN_UNBOUND, &port), CA_E_UNSUPPORTED);
        CHECK_EQUAL(ca_vchan_serve(1, 4096, 4096, info), CA_E_UNSUPPORTED);
        CHECK_EQUAL(ca_vchan_connect(1, 8, 3, info), CA_E_UNSUPPORTED);
    }
}

void test_vchan(void) {
    for (uint32_t bytes = CA_VCHAN_RING_MIN; bytes <= CA_VCHAN_RING_MAX; bytes *= 4) carries(bytes);
    wakes_when_asked();
    const uint32_t lies[] = {4097 + 100, 0x7fffffff, 0x80000000, 0xffff0000, 101 + 4096};
    for (int which = 0; which < 4; which++)
        for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) refuses(which, lies[i]);
    refuses_layouts();
    survives_scribbling();
    learns_whether_to_spin();
    gives_up_on_one_who_sips();
    checks_arguments();
}
