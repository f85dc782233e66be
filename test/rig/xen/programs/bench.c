// What the benchmark compares with: the same work on a domain's memory in plain C, through Xen's own library.
//
//   bench DOMID, then orders on standard input, each answered by one line of two numbers, the first nanoseconds:
//   map END                          maps each 2 MiB below END by one call, reads a word of it, unmaps; the words' sum
//   hold END                         maps all of it and keeps it, for `read`
//   read ROOT LEVELS LENGTH FILE     batches of 256: LENGTH bytes at each address of FILE, through the page tables, copied
//                                    out; the sum of their first words
#include <dlfcn.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { RUN_PAGES = 512, BATCH = 256, LONGEST = 4096 };
#define RUN_BYTES 0x200000ull

// xenforeignmemory.h; a stable interface.
static void *handle;
static void *(*foreign_map)(void *, uint32_t, int, size_t, const uint64_t *, int *);
static int (*foreign_unmap)(void *, void *, size_t);

static uint32_t domid;
static uint8_t **runs;
static uint64_t count;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void die(const char *what)
{
    fprintf(stderr, "bench: %s\n", what);
    exit(1);
}

static void *symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);
    if (found == NULL) die(name);
    return found;
}

static void load(void)
{
    void *library = dlopen("libxenforeignmemory.so.1", RTLD_NOW);
    if (library == NULL) die(dlerror());
    void *(*foreign_open)(void *, unsigned) = symbol(library, "xenforeignmemory_open");
    foreign_map = symbol(library, "xenforeignmemory_map");
    foreign_unmap = symbol(library, "xenforeignmemory_unmap");
    handle = foreign_open(NULL, 0);
    if (handle == NULL) die("xenforeignmemory_open");
}

// A run whose last pages are missing is mapped as far as it goes, as the library does.
static uint8_t *map_run(uint64_t number)
{
    uint64_t frames[RUN_PAGES];
    int errors[RUN_PAGES];
    for (unsigned i = 0; i < RUN_PAGES; i++) frames[i] = number * RUN_PAGES + i;
    uint8_t *base = foreign_map(handle, domid, PROT_READ, RUN_PAGES, frames, errors);
    return base != NULL && errors[0] == 0 ? base : NULL;
}

static void map(uint64_t end)
{
    double began = now();
    uint64_t sum = 0, word;
    for (uint64_t number = 0; number < end / RUN_BYTES; number++) {
        uint8_t *base = map_run(number);
        if (base == NULL) die("a run is not there");
        memcpy(&word, base, 8);
        sum += word;
        foreign_unmap(handle, base, RUN_PAGES);
    }
    printf("%.0f %" PRIu64 "\n", now() - began, sum);
}

static void hold(uint64_t end)
{
    double began = now();
    count = (end + RUN_BYTES - 1) / RUN_BYTES;
    runs = calloc(count, sizeof *runs);
    if (runs == NULL) die("memory");
    for (uint64_t number = 0; number < count; number++) runs[number] = map_run(number);
    printf("%.0f %" PRIu64 "\n", now() - began, count);
}

static const uint8_t *at(uint64_t pa)
{
    uint64_t number = pa / RUN_BYTES;
    return number < count && runs[number] != NULL ? runs[number] + pa % RUN_BYTES : NULL;
}

static const uint8_t *walk(uint64_t root, int levels, uint64_t va)
{
    uint64_t table = root;
    for (int level = levels; level >= 1; level--) {
        int shift = 12 + 9 * (level - 1);
        const uint8_t *slot = at(table + ((va >> shift) & 511) * 8);
        uint64_t entry;
        if (slot == NULL) return NULL;
        memcpy(&entry, slot, 8);
        if (!(entry & 1)) return NULL;
        table = entry & 0x000ffffffffff000ull;
        if (level > 1 && level < 4 && (entry & 0x80)) {
            uint64_t mask = (1ull << shift) - 1;
            return at((table & ~mask) | (va & mask));
        }
    }
    return at(table | (va & 4095));
}

static void read_all(uint64_t root, int levels, unsigned length, const char *file)
{
    static uint8_t out[BATCH * LONGEST];
    FILE *f = fopen(file, "rb");
    if (f == NULL || length < 8 || length > LONGEST) die("read");
    fseek(f, 0, SEEK_END);
    size_t total = (size_t)ftell(f) / 8;
    rewind(f);
    uint64_t *addresses = malloc(total * 8);
    if (addresses == NULL || fread(addresses, 8, total, f) != total) die(file);
    fclose(f);
    double began = now();
    uint64_t sum = 0, word;
    for (size_t first = 0; first < total; first += BATCH) {
        for (size_t i = 0; i < BATCH && first + i < total; i++) {
            const uint8_t *from = walk(root, levels, addresses[first + i]);
            if (from == NULL) die("an address could not be read");
            memcpy(out + i * length, from, length);
        }
        for (size_t i = 0; i < BATCH && first + i < total; i++) {
            memcpy(&word, out + i * length, 8);
            sum += word;
        }
    }
    printf("%.0f %" PRIu64 "\n", now() - began, sum);
    free(addresses);
}

int main(int argc, char **argv)
{
    char line[512], file[256];
    uint64_t end, root;
    int levels;
    unsigned length;
    if (argc != 2) die("which domain?");
    domid = (uint32_t)strtoul(argv[1], NULL, 10);
    load();
    setvbuf(stdout, NULL, _IOLBF, 0);
    while (fgets(line, sizeof line, stdin) != NULL) {
        if (sscanf(line, "map %" SCNx64, &end) == 1) map(end);
        else if (sscanf(line, "hold %" SCNx64, &end) == 1) hold(end);
        else if (sscanf(line, "read %" SCNx64 " %d %u %255s", &root, &levels, &length, file) == 4)
            read_all(root, levels, length, file);
        else die(line);
    }
    return 0;
}
