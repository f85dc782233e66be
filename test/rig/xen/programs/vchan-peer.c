/*
 * The other end of a vchan, over Debian's libxenvchan: what our end is compared with, and must understand.
 *   vchan-peer server|client DOMID PATH RING MODE [ARGUMENTS]
 *     echo                 writes back what it reads, until the peer closes
 *     drive MOST           pieces of 1, 2, ... 20, 22, ... up to MOST bytes, each expected back; "drove N bytes"
 *     source BYTES PIECE   writes so much and closes when the peer has read it
 *     sink BYTES PIECE     reads so much; "MB/s X"
 *     ping COUNT           one-byte round trips; "us X" (the median)
 *     hold                 says "held" and stays
 *     lie WHICH VALUE      reads a byte, so that the other end has it for connected; then writes a shared index (0 left.cons, 1 left.prod, 2 right.cons, 3 right.prod), notifies, stays
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <libxenvchan.h>

static struct libxenvchan *(*server_init)(struct xentoollog_logger *, int, const char *, size_t, size_t);
static struct libxenvchan *(*client_init)(struct xentoollog_logger *, int, const char *);
static void (*vchan_close)(struct libxenvchan *);
static int (*vchan_read)(struct libxenvchan *, void *, size_t);
static int (*vchan_write)(struct libxenvchan *, const void *, size_t);
static int (*vchan_wait)(struct libxenvchan *);
static int (*is_open)(struct libxenvchan *);
static int (*notify)(xenevtchn_handle *, evtchn_port_t);

static void fail(const char *what) {
    fprintf(stderr, "vchan-peer: %s\n", what);
    exit(1);
}

static void bind(const char *file, const char *name, void *to) {
    void *library = dlopen(file, RTLD_NOW), *found = library == NULL ? NULL : dlsym(library, name);
    if (found == NULL) fail(dlerror());
    memcpy(to, &found, sizeof found);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static unsigned char pattern(unsigned long at) { return (unsigned char)(at * 7 + (at >> 8)); }

static void echo(struct libxenvchan *vchan) {
    static char buffer[1 << 20];
    vchan->blocking = 1;
    for (int got; (got = vchan_read(vchan, buffer, sizeof buffer)) > 0;)
        for (int put = 0, n; put < got; put += n)
            if ((n = vchan_write(vchan, buffer + put, (size_t)(got - put))) <= 0) return;
}

static void drive(struct libxenvchan *vchan, unsigned long most) {
    unsigned char *out = malloc(most), *in = malloc(most);
    unsigned long sent = 0, got = 0;
    vchan->blocking = 0;
    for (unsigned long size = 1; size <= most; size += 1 + size / 20) {
        for (unsigned long i = 0; i < size; i++) out[i] = pattern(sent + i);
        for (unsigned long put = 0, have = 0; have < size;) {
            int n = put < size ? vchan_write(vchan, out + put, size - put) : 0;
            int m = vchan_read(vchan, in, size - have);
            if (n < 0 || m < 0) fail("the peer closed too early");
            put += n;
            for (int i = 0; i < m; i++)
                if (in[i] != pattern(got + i)) fail("wrong bytes came back");
            have += m;
            got += m;
            if (n == 0 && m == 0) vchan_wait(vchan);
        }
        sent += size;
    }
    printf("drove %lu bytes\n", sent);
}

static void source(struct libxenvchan *vchan, unsigned long bytes, unsigned long piece) {
    char *out = calloc(1, piece), byte;
    vchan->blocking = 1;
    for (unsigned long put = 0; put < bytes;) {
        int n = vchan_write(vchan, out, piece < bytes - put ? piece : bytes - put);
        if (n <= 0) fail("the peer closed too early");
        put += n;
    }
    /* Until the peer has read all and closes. */
    while (vchan_read(vchan, &byte, 1) > 0) {}
}

static void sink(struct libxenvchan *vchan, unsigned long bytes, unsigned long piece) {
    char *in = malloc(piece);
    vchan->blocking = 1;
    double begun = 0;
    for (unsigned long got = 0; got < bytes;) {
        int n = vchan_read(vchan, in, piece);
        if (n <= 0) fail("the peer closed too early");
        /* The first bytes are those of the start. */
        if (got == 0) begun = now();
        got += n;
    }
    printf("MB/s %.3f\n", bytes / (now() - begun));
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void ping(struct libxenvchan *vchan, int count) {
    double *took = malloc(count * sizeof *took);
    char byte = 1;
    vchan->blocking = 1;
    for (int i = 0; i < count; i++) {
        double begun = now();
        if (vchan_write(vchan, &byte, 1) != 1 || vchan_read(vchan, &byte, 1) != 1) fail("the peer closed too early");
        took[i] = now() - begun;
    }
    qsort(took, count, sizeof *took, by_value);
    printf("us %.1f\n", took[count / 2]);
}

static void lie(struct libxenvchan *vchan, int which, unsigned long value) {
    uint32_t *indexes[4] = {&vchan->ring->left.cons, &vchan->ring->left.prod, &vchan->ring->right.cons, &vchan->ring->right.prod};
    char byte;
    int got;
    while ((got = vchan_read(vchan, &byte, 1)) == 0) vchan_wait(vchan);
    if (got != 1) fail("no greeting");
    __atomic_store_n(indexes[which & 3], (uint32_t)value, __ATOMIC_SEQ_CST);
    notify(vchan->event, vchan->event_port);
    printf("lied\n");
}

int main(int argc, char **argv) {
    if (argc < 6) fail("server|client DOMID PATH RING MODE [ARGUMENTS]");
    const char *file = "libxenvchan.so.4.17";
    bind(file, "libxenvchan_server_init", &server_init);
    bind(file, "libxenvchan_client_init", &client_init);
    bind(file, "libxenvchan_close", &vchan_close);
    bind(file, "libxenvchan_read", &vchan_read);
    bind(file, "libxenvchan_write", &vchan_write);
    bind(file, "libxenvchan_wait", &vchan_wait);
    bind(file, "libxenvchan_is_open", &is_open);
    bind("libxenevtchn.so.1", "xenevtchn_notify", &notify);
    int server = strcmp(argv[1], "server") == 0, domid = atoi(argv[2]);
    size_t ring = strtoul(argv[4], NULL, 0);
    struct libxenvchan *vchan = NULL;
    /* A client may be started before its server. */
    for (int i = 0; i < 600 && vchan == NULL; i++) {
        vchan = server ? server_init(NULL, domid, argv[3], ring, ring) : client_init(NULL, domid, argv[3]);
        if (vchan == NULL) usleep(100000);
    }
    if (vchan == NULL) fail("no vchan");
    printf("open\n");
    fflush(stdout);
    while (is_open(vchan) == 2) vchan_wait(vchan);
    unsigned long a = argc > 6 ? strtoul(argv[6], NULL, 0) : 0, b = argc > 7 ? strtoul(argv[7], NULL, 0) : 0;
    const char *mode = argv[5];
    if (strcmp(mode, "echo") == 0) echo(vchan);
    else if (strcmp(mode, "drive") == 0) drive(vchan, a);
    else if (strcmp(mode, "source") == 0) source(vchan, a, b);
    else if (strcmp(mode, "sink") == 0) sink(vchan, a, b);
    else if (strcmp(mode, "ping") == 0) ping(vchan, (int)a);
    else if (strcmp(mode, "lie") == 0) lie(vchan, (int)a, b);
    else if (strcmp(mode, "hold") == 0) printf("held\n");
    else fail("no such mode");
    fflush(stdout);
    if (strcmp(mode, "hold") == 0 || strcmp(mode, "lie") == 0)
        for (;;) pause();
    vchan_close(vchan);
    printf("closed\n");
    return 0;
}
