#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "ledger.h"

#define MAGIC 0x3167646c41435041ull
#define GRACE_NS 5000000

static char folder[256] = CA_LEDGER_FOLDER;

void ca_ledger_use(const char *path) { snprintf(folder, sizeof folder, "%s", path == NULL ? CA_LEDGER_FOLDER : path); }

static void path_of(uint32_t domid, char *path, size_t size) { snprintf(path, size, "%s/%u", folder, domid); }

static bool lock(int fd, uint32_t what, short type, int command) {
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = what, .l_len = 1};
    int failed;
    do failed = fcntl(fd, command, &range);
    while (failed != 0 && errno == EINTR);
    return failed == 0;
}

bool ca_ledger_lock(const struct ca_ledger_file *file, uint32_t what) { return lock(file->fd, what, F_WRLCK, F_OFD_SETLK); }
void ca_ledger_unlock(const struct ca_ledger_file *file, uint32_t what) { lock(file->fd, what, F_UNLCK, F_OFD_SETLK); }

static int open_file(uint32_t domid) {
    char path[300], *slash = folder;
    path_of(domid, path, sizeof path);
    /* /run is a tmpfs that begins empty; each folder is for its owner only. */
    while ((slash = strchr(slash + 1, '/')) != NULL) {
        *slash = 0;
        mkdir(folder, 0755);
        *slash = '/';
    }
    mkdir(folder, 0700);
    struct stat now;
    if (lstat(folder, &now) != 0) return -1;
    if (!S_ISDIR(now.st_mode) || now.st_uid != geteuid() || (now.st_mode & 022) != 0) {
        errno = EPERM;
        return -1;
    }
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static void begin(struct ca_ledger *ledger, const uint8_t uuid[16]) {
    if (ledger->magic == MAGIC && memcmp(ledger->uuid, uuid, 16) == 0) return;
    /* The domain that had this number has gone, and what was done to it. */
    memset(ledger, 0, CA_LEDGER_BYTES);
    memcpy(ledger->uuid, uuid, 16);
    atomic_thread_fence(memory_order_seq_cst);
    ledger->magic = MAGIC;
}

int32_t ca_ledger_open(struct ca_ledger_file *file, uint32_t domid, const uint8_t uuid[16], bool write) {
    struct stat now;
    int fd = open_file(domid), error = errno;
    file->fd = -1;
    file->ledger = NULL;
    if (fd < 0)
        return ca_fail(write ? CA_E_UNSUPPORTED : CA_E_OPEN, "the ledger %s/%u can not be opened: %s", folder, domid, strerror(error));
    void *at = MAP_FAILED;
    if (lock(fd, CA_LOCK_CREATE, F_WRLCK, F_OFD_SETLKW) && fstat(fd, &now) == 0 && S_ISREG(now.st_mode) &&
        (now.st_size == CA_LEDGER_BYTES || ftruncate(fd, CA_LEDGER_BYTES) == 0))
        at = mmap(NULL, CA_LEDGER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        int32_t result = ca_fail(CA_E_UNSUPPORTED, "the ledger %s/%u can not be used: %s", folder, domid, strerror(errno));
        close(fd);
        return result;
    }
    begin(at, uuid);
    lock(fd, CA_LOCK_CREATE, F_UNLCK, F_OFD_SETLK);
    file->ledger = at;
    if (write) {
        file->fd = fd;
    } else {
        mprotect(at, CA_LEDGER_BYTES, PROT_READ);
        close(fd);
    }
    return CA_OK;
}

void ca_ledger_close(struct ca_ledger_file *file) {
    if (file->ledger != NULL) munmap(file->ledger, CA_LEDGER_BYTES);
    if (file->fd >= 0) close(file->fd);
    file->ledger = NULL;
    file->fd = -1;
}

void ca_ledger_remove(uint32_t domid) {
    char path[300];
    path_of(domid, path, sizeof path);
    unlink(path);
}

uint32_t ca_ledger_domains(uint32_t *domids, uint32_t most) {
    uint32_t count = 0;
    DIR *files = opendir(folder);
    if (files == NULL) return 0;
    for (const struct dirent *file; count < most && (file = readdir(files)) != NULL;) {
        char *end;
        unsigned long domid = strtoul(file->d_name, &end, 10);
        if (file->d_name[0] >= '0' && file->d_name[0] <= '9' && *end == 0 && domid < CA_DOMAINS) domids[count++] = (uint32_t)domid;
    }
    closedir(files);
    return count;
}

struct ca_patch *ca_ledger_prepare(struct ca_ledger *ledger, uint64_t gpa, uint64_t va, const uint8_t *patch,
                                   const uint8_t *original, uint32_t length) {
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++) {
        struct ca_patch *p = &ledger->patch[i];
        if (atomic_load(&p->state) != CA_PATCH_FREE) continue;
        uint32_t sequence = atomic_load(&p->sequence) | 1;
        atomic_store(&p->sequence, sequence);
        p->gpa = gpa;
        p->va = va;
        p->length = length;
        memset(p->patch, 0, sizeof p->patch);
        memset(p->original, 0, sizeof p->original);
        memcpy(p->patch, patch, length);
        memcpy(p->original, original, length);
        atomic_store(&p->sequence, sequence + 1);
        atomic_store(&p->state, CA_PATCH_PREPARED);
        if (atomic_load(&ledger->highest) <= i) atomic_store(&ledger->highest, i + 1);
        atomic_fetch_add(&ledger->live, 1);
        return p;
    }
    return NULL;
}

void ca_ledger_free(struct ca_ledger *ledger, struct ca_patch *patch) {
    atomic_store(&patch->state, CA_PATCH_FREE);
    /* Counted anew: a kill between two steps must not leave it wrong for ever. */
    uint32_t live = 0;
    for (uint32_t i = 0; i < CA_BREAKPOINTS_MAX; i++)
        if (atomic_load(&ledger->patch[i].state) != CA_PATCH_FREE) live++;
    atomic_store(&ledger->live, live);
}

void ca_ledger_grace(void) {
    const struct timespec wait = {0, GRACE_NS};
    nanosleep(&wait, NULL);
}

static uint32_t highest(const struct ca_ledger *ledger) {
    uint32_t count = atomic_load_explicit(&ledger->highest, memory_order_acquire);
    return count < CA_BREAKPOINTS_MAX ? count : CA_BREAKPOINTS_MAX;
}

/* A patch as it is, or false if it is free or changing: one that changes is not in the guest. */
static bool look(const struct ca_patch *p, struct ca_patch *out) {
    for (int i = 0; i < 100; i++) {
        uint32_t before = atomic_load(&p->sequence);
        if (atomic_load(&p->state) == CA_PATCH_FREE) return false;
        if ((before & 1) != 0) continue;
        out->gpa = p->gpa;
        out->length = p->length;
        memcpy(out->patch, p->patch, sizeof p->patch);
        memcpy(out->original, p->original, sizeof p->original);
        atomic_thread_fence(memory_order_acquire);
        if (atomic_load(&p->sequence) == before && out->length <= CA_PATCH_MAX) return true;
    }
    return false;
}

bool ca_ledger_covers(const struct ca_ledger *ledger, uint64_t gpa, uint64_t *bytes) {
    uint64_t page = gpa / CA_PAGE, end = gpa + *bytes;
    bool here = false;
    for (uint32_t i = 0; i < highest(ledger); i++) {
        struct ca_patch p;
        if (!look(&ledger->patch[i], &p)) continue;
        if (p.gpa / CA_PAGE == page) here = true;
        else if (p.gpa > gpa && p.gpa / CA_PAGE * CA_PAGE < end) end = p.gpa / CA_PAGE * CA_PAGE;
    }
    *bytes = here ? (page + 1) * CA_PAGE - gpa : end - gpa;
    return here;
}

static void apply(const struct ca_patch *p, uint64_t page, uint8_t *to) {
    uint64_t in = p->gpa % CA_PAGE;
    if (p->gpa / CA_PAGE == page && p->length <= CA_PAGE - in && memcmp(to + in, p->patch, p->length) == 0)
        memcpy(to + in, p->original, p->length);
}

bool ca_ledger_cover(const struct ca_ledger *ledger, uint64_t gpa, const uint8_t *from, uint8_t *to) {
    struct ca_patch before[CA_BREAKPOINTS_MAX], now;
    uint32_t count = 0;
    uint64_t page = gpa / CA_PAGE;
    for (uint32_t i = 0; i < highest(ledger); i++)
        if (look(&ledger->patch[i], &before[count])) count++;
    if (ca_guard_copy(to, from, CA_PAGE) != 0) return false;
    /* One that came meanwhile may be in the copy, as may one that has gone. */
    for (uint32_t i = 0; i < highest(ledger); i++)
        if (look(&ledger->patch[i], &now)) apply(&now, page, to);
    for (uint32_t i = 0; i < count; i++) apply(&before[i], page, to);
    return true;
}

void ca_ledger_before(const struct ca_ledger *ledger, uint64_t gpa, uint64_t *bytes) {
    for (uint32_t i = 0; i < highest(ledger); i++) {
        struct ca_patch p;
        if (!look(&ledger->patch[i], &p)) continue;
        if (p.gpa <= gpa && gpa < p.gpa + p.length) *bytes = 0;
        else if (p.gpa > gpa && p.gpa - gpa < *bytes) *bytes = p.gpa - gpa;
    }
}
