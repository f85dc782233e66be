/* A small guest for the C tests and the fuzz target: RAM in a memfd, page tables of both depths, one of each structure. */
#ifndef CA_TEST_GUEST_H
#define CA_TEST_GUEST_H

#include <stdint.h>

#define GUEST_PAGES 64u
#define GUEST_SIZE (GUEST_PAGES * 4096u)
/* Virtual addresses: all pages; the same through a 2 MiB and a 1 GiB page. */
#define VA_DIRECT 0xffff888000000000ull
#define VA_LARGE 0xffff888040000000ull
#define VA_HUGE 0xffff888080000000ull
#define ROOT4 (1ull * 4096)
#define ROOT5 (2ull * 4096)
#define SPACE4 (ROOT4 | 4)
#define SPACE5 (ROOT5 | 5)
/* A table whose 512 entries all lead to itself. */
#define ROOT_MAZE (16ull * 4096)
#define SPACE_MAZE (ROOT_MAZE | 4)

#define ENTRY_PRESENT 1ull
#define ENTRY_WRITE 2ull
#define ENTRY_USER 4ull
#define ENTRY_LARGE 0x80ull
#define ENTRY_NX (1ull << 63)

/* Physical places of the structures' heads; elements are 64 bytes, linked at 16. */
#define AT_LIST 0x8000ull
#define AT_HLIST 0x8040ull
#define AT_HASH 0x8080ull
#define HASH_BUCKETS 8u
#define AT_RBTREE 0x8100ull
#define AT_XARRAY 0x8140ull
#define AT_POINTERS 0x8180ull
#define AT_ELEMENTS 0x9000ull
#define ELEMENTS 32u
#define AT_NODES 0xa000ull
#define XA_SHIFT 0u
#define XA_SLOTS 40u
#define VIRT(pa) (VA_DIRECT + (pa))

/* A memfd of GUEST_SIZE bytes and a view to write it by. */
int guest_new(uint8_t **ram);
void guest_fill(uint8_t *ram);
void guest_put(uint8_t *ram, uint64_t pa, uint64_t value);
/* Opens the memfd through the library. */
int32_t guest_open(int fd, uint32_t flags);

#endif
