#ifndef CA_TEST_H
#define CA_TEST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cloudapp.h"
#include "guest.h"

extern unsigned checks;

#define CHECK(condition)                                                             \
    do {                                                                             \
        checks++;                                                                    \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);  \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

#define CHECK_EQUAL(left, right)                                                                          \
    do {                                                                                                  \
        unsigned long long left_ = (unsigned long long)(left), right_ = (unsigned long long)(right);      \
        checks++;                                                                                         \
        if (left_ != right_) {                                                                            \
            fprintf(stderr, "%s:%d: %s is 0x%llx, not 0x%llx\n", __FILE__, __LINE__, #left, left_, right_); \
            exit(1);                                                                                      \
        }                                                                                                 \
    } while (0)

struct cursor {
    _Alignas(8) uint8_t bytes[CA_CURSOR_SIZE];
};

struct fault_row {
    uint32_t request, index, reason, level;
    uint64_t address, entry;
};

/* One read; the fault's reason, or 0. */
uint32_t read_at(int32_t mem, uint64_t space, uint64_t at, void *to, uint32_t size, struct fault_row *fault);

void test_errors(void);
void test_paging(void);
void test_guard(void);
void test_walk(void);
void test_scan(void);
void test_threads(void);
void test_xen(void);
void test_libvmi(void);
void test_events(void);
void test_instruction(void);
void test_agent(void);
void test_vchan(void);

#endif
