/*
 * Maps one page of another domain, as any program of a service domain can: through xen-privcmd and nothing of ours.
 *
 *   map DOMID GFN           maps it for reading:  "mapped HEX" (its first 8 bytes) or "refused ERRNO"
 *   map DOMID GFN write     maps it for writing
 *   map DOMID GFN hold      maps it for reading and keeps it, come what may: "held N HEX" each 200 ms
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <fcntl.h>

/* struct privcmd_mmapbatch_v2 and IOCTL_PRIVCMD_MMAPBATCH_V2 of include/uapi/xen/privcmd.h. */
struct batch {
    unsigned count;
    uint16_t domid;
    uint64_t address;
    const uint64_t *frames;
    int *errors;
};
#define MMAPBATCH_V2 _IOC(_IOC_NONE, 'P', 4, sizeof(struct batch))

int main(int count, char **words) {
    if (count < 3) return 2;
    const char *mode = count > 3 ? words[3] : "";
    int writes = strcmp(mode, "write") == 0;
    int file = open("/dev/xen/privcmd", O_RDWR);
    if (file < 0) return perror("/dev/xen/privcmd"), 1;
    int prot = writes ? PROT_READ | PROT_WRITE : PROT_READ;
    volatile uint64_t *page = mmap(NULL, 4096, prot, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) return perror("mmap"), 1;
    uint64_t frame = strtoull(words[2], NULL, 0);
    int error = 0;
    struct batch batch = {1, (uint16_t)atoi(words[1]), (uintptr_t)page, &frame, &error};
    if (ioctl(file, MMAPBATCH_V2, &batch) != 0) error = -errno;
    if (error != 0) return printf("refused %d\n", -error), 0;
    if (strcmp(mode, "hold") != 0) return printf("mapped %016llx\n", (unsigned long long)*page), 0;
    for (unsigned long n = 1;; n++) {
        printf("held %lu %016llx\n", n, (unsigned long long)*page);
        fflush(stdout);
        nanosleep(&(struct timespec){0, 200000000}, NULL);
    }
}
