// What the benchmark of LibVMI compares with: the same work by a plain C program on LibVMI, found at run time. Its ABI as
// native/libvmi-shim/src/libvmi.h has it, and vmi_init_paging and vmi_read beside.
//
//   bench-libvmi LIBRARY xen:DOMID|file:PATH, then orders on standard input, each answered by one line of two numbers, the
//   first nanoseconds, the second a sum of what was read modulo 2^64:
//   attach                   opens the target anew: vmi_init and vmi_init_paging; the sum is 0
//   tasks cold|warm COUNT ...  lists the tasks COUNT times; the 13 numbers that follow (hexadecimal) are those of `struct layout`. Cold:
//                            LibVMI's pages and translations are dropped before, once
//   read ROOT FILE           8 bytes at each address of FILE, through the page tables
//   bulk END CHUNK           copies the memory below END out, CHUNK bytes in a call; the sum of each page's first word
#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { XEN = 0, LOCAL_FILE = 2, INIT_NAME = 1, INIT_ID = 2, IA_32E = 4, BY_TABLE = 1, MAX_TASKS = 65536 };

struct context {
    uint32_t version, unused;
    uint32_t page_mode, nested_mode;
    uint64_t nested_table;
    uint32_t mechanism, unused2;
    uint64_t address;
    uint64_t table;
};
_Static_assert(sizeof(struct context) == 48, "access_context_t");

static struct {
    int (*init)(void **, uint32_t, const void *, uint64_t, void *, uint32_t *);
    uint32_t (*init_paging)(void *, uint64_t);
    int (*destroy)(void *);
    int (*read)(void *, const struct context *, size_t, void *, size_t *);
    int (*read_pa)(void *, uint64_t, size_t, void *, size_t *);
    void (*v2pcache_flush)(void *, uint64_t);
    void (*pagecache_flush)(void *);
} lib;

static void *vmi;
static FILE *answers;

static void die(const char *what)
{
    fprintf(stderr, "bench-libvmi: %s\n", what);
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void load(const char *path)
{
    static const char *const names[] = {"vmi_init",    "vmi_init_paging",    "vmi_destroy",        "vmi_read",
                                        "vmi_read_pa", "vmi_v2pcache_flush", "vmi_pagecache_flush"};
    void *library = dlopen(path, RTLD_NOW);
    if (library == NULL) die(dlerror());
    void **to = (void **)&lib;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((to[i] = dlsym(library, names[i])) == NULL) die(names[i]);
}

static void attach(const char *target)
{
    bool file = strncmp(target, "file:", 5) == 0;
    uint64_t domid = file ? 0 : strtoull(target + 4, NULL, 10);
    uint32_t stage = 0;
    if (vmi != NULL) lib.destroy(vmi);
    vmi = NULL;
    double began = now();
    int failed = file ? lib.init(&vmi, LOCAL_FILE, target + 5, INIT_NAME, NULL, &stage)
                      : lib.init(&vmi, XEN, &domid, INIT_ID, NULL, &stage);
    if (failed != 0 || vmi == NULL) die("vmi_init");
    // What it says of the page mode is that of the last CR3 it found, which a file has none of.
    lib.init_paging(vmi, 0);
    fprintf(answers, "%.0f 0\n", now() - began);
}

static bool get(uint64_t table, uint64_t at, size_t bytes, void *to)
{
    struct context context = {.version = 1, .page_mode = IA_32E, .mechanism = BY_TABLE, .address = at, .table = table};
    size_t done = 0;
    return lib.read(vmi, &context, bytes, to, &done) == 0 && done == bytes;
}

struct layout {
    uint64_t table, head, node, pid, tgid, flags, comm, parent, cred, mm, signal, uid, pgd;
};

// A field behind a pointer that is null stays 0, as in the columns of the library's walk.
static void follow(const struct layout *l, uint64_t pointer, uint64_t offset, size_t bytes, void *to)
{
    uint64_t at;
    if (!get(l->table, pointer, 8, &at)) die("a pointer can not be read");
    if (at != 0 && !get(l->table, at + offset, bytes, to)) die("a field can not be read");
}

static uint64_t list(const struct layout *l)
{
    uint64_t sum = 0, next;
    unsigned count = 0;
    if (!get(l->table, l->head, 8, &next)) die("the list's head can not be read");
    for (; next != l->head; count++) {
        uint32_t pid, tgid, flags, ppid = 0, uid = 0;
        uint64_t task = next - l->node, signal, pgd = 0;
        char comm[16];
        if (count == MAX_TASKS) die("the list has no end");
        if (!get(l->table, task + l->pid, 4, &pid) || !get(l->table, task + l->tgid, 4, &tgid) ||
            !get(l->table, task + l->flags, 4, &flags) || !get(l->table, task + l->comm, sizeof comm, comm) ||
            !get(l->table, task + l->signal, 8, &signal))
            die("a task can not be read");
        follow(l, task + l->parent, l->tgid, 4, &ppid);
        follow(l, task + l->cred, l->uid, 4, &uid);
        follow(l, task + l->mm, l->pgd, 8, &pgd);
        sum += pid + 3ull * tgid + 5ull * ppid + 7ull * uid + 11ull * (uint8_t)comm[0] + (pgd != 0);
        if (!get(l->table, next, 8, &next)) die("the list can not be followed");
    }
    return sum + (uint64_t)count * 1000003;
}

static void tasks(bool cold, unsigned count, const struct layout *l)
{
    if (cold) {
        lib.v2pcache_flush(vmi, ~0ull);
        lib.pagecache_flush(vmi);
    }
    double began = now();
    uint64_t sum = 0;
    for (unsigned i = 0; i < count; i++) sum += list(l);
    fprintf(answers, "%.0f %" PRIu64 "\n", now() - began, sum);
}

static void reads(uint64_t table, const char *file)
{
    static uint64_t addresses[1 << 16];
    FILE *in = fopen(file, "rb");
    if (in == NULL) die("no file of addresses");
    size_t count = fread(addresses, 8, sizeof addresses / 8, in);
    fclose(in);
    double began = now();
    uint64_t sum = 0, word;
    for (size_t i = 0; i < count; i++) {
        if (!get(table, addresses[i], 8, &word)) die("an address can not be read");
        sum += word;
    }
    fprintf(answers, "%.0f %" PRIu64 "\n", now() - began, sum);
}

static void bulk(uint64_t end, uint64_t chunk)
{
    uint8_t *to = malloc(chunk);
    if (to == NULL || chunk % 4096 != 0) die("the chunk's size");
    double began = now();
    uint64_t sum = 0, word;
    for (uint64_t at = 0; at + chunk <= end; at += chunk) {
        size_t done = 0;
        if (lib.read_pa(vmi, at, chunk, to, &done) != 0 || done != chunk) die("memory can not be copied");
        for (uint64_t page = 0; page < chunk; page += 4096) {
            memcpy(&word, to + page, 8);
            sum += word;
        }
    }
    fprintf(answers, "%.0f %" PRIu64 "\n", now() - began, sum);
    free(to);
}

int main(int argc, char **argv)
{
    char line[4096], name[16], kind[8], file[3072];
    unsigned long long a, b;
    if (argc != 3 || (strncmp(argv[2], "xen:", 4) != 0 && strncmp(argv[2], "file:", 5) != 0))
        die("use: bench-libvmi LIBRARY xen:DOMID|file:PATH");
    // LibVMI talks on standard output and error.
    answers = fdopen(dup(1), "w");
    int nowhere = open("/dev/null", O_WRONLY);
    if (answers == NULL || nowhere < 0 || dup2(nowhere, 1) < 0) die("standard output");
    load(argv[1]);
    while (fgets(line, sizeof line, stdin) != NULL) {
        struct layout l;
        unsigned count = 0;
        uint64_t *to = (uint64_t *)&l;
        int used = 0;
        if (sscanf(line, "%15s", name) != 1) die("an order is empty");
        if (strcmp(name, "attach") == 0) {
            attach(argv[2]);
        } else if (strcmp(name, "tasks") == 0 && sscanf(line, "%*s %7s %u%n", kind, &count, &used) == 2) {
            const char *rest = line + used;
            for (size_t i = 0; i < sizeof l / 8; i++) {
                char *end;
                to[i] = strtoull(rest, &end, 16);
                if (end == rest) die("a number is missing");
                rest = end;
            }
            tasks(strcmp(kind, "cold") == 0, count, &l);
        } else if (strcmp(name, "read") == 0 && sscanf(line, "%*s %llx %3071s", &a, file) == 2) {
            reads(a, file);
        } else if (strcmp(name, "bulk") == 0 && sscanf(line, "%*s %llx %llx", &a, &b) == 2) {
            bulk(a, b);
        } else {
            die("an order is not known");
        }
        fflush(answers);
    }
    if (vmi != NULL) lib.destroy(vmi);
    return 0;
}
