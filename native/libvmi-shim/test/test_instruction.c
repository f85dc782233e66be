/* The instructions that a breakpoint may stand on. */
#include "session.h"
#include "test.h"

void test_instruction(void) {
    static const struct {
        uint8_t bytes[16];
        uint32_t length;
        bool nop;
    } known[] = {
        {{0xf3, 0x0f, 0x1e, 0xfa}, 4, true}, {{0x0f, 0x1f, 0x44, 0, 0}, 5, true}, {{0x66, 0x0f, 0x1f, 0x44, 0, 0}, 6, true},
        {{0x0f, 0x1f, 0x80, 1, 2, 3, 4}, 7, true}, {{0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 1, 2, 3, 4}, 10, true}, {{0x90}, 1, true},
        {{0x66, 0x90}, 2, true}, {{0x55}, 1, false}, {{0x41, 0x57}, 2, false}, {{0x48, 0x89, 0xe5}, 3, false},
        {{0x48, 0x83, 0xec, 0x28}, 4, false}, {{0x48, 0x81, 0xec, 0, 1, 0, 0}, 7, false}, {{0x48, 0x8b, 0x47, 0x10}, 4, false},
        {{0x65, 0x48, 0x89, 0x24, 0x25, 0x14, 0x60, 0, 0}, 9, false}, {{0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0}, 9, false},
        {{0x48, 0x89, 0x5c, 0x24, 0x08}, 5, false}, {{0xe8, 1, 2, 3, 4}, 5, false}, {{0x31, 0xc0}, 2, false},
        {{0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8}, 10, false}, {{0xb8, 1, 0, 0, 0}, 5, false}, {{0x48, 0xc7, 0xc0, 1, 0, 0, 0}, 7, false},
        {{0xcc}, 0, false}, {{0xe9, 1, 2, 3, 4}, 0, false}, {{0x0f, 0x0b}, 0, false}, {{0x48, 0x8b, 0x05, 1, 2, 3, 4}, 0, false},
        {{0xc3}, 0, false}, {{0x0f, 0x01, 0xf8}, 0, false}};
    for (unsigned i = 0; i < sizeof known / sizeof *known; i++) {
        struct ca_instruction in = ca_instruction_decode(known[i].bytes);
        if (in.length != known[i].length) fprintf(stderr, "instruction %u\n", i);
        CHECK_EQUAL(in.length, known[i].length);
        if (in.length != 0) CHECK_EQUAL(in.nop, known[i].nop);
    }
    CHECK(ca_instruction_is_descriptor((const uint8_t *)"\x0f\x00\xc0", 3));
    CHECK(ca_instruction_is_descriptor((const uint8_t *)"\x66\x41\x0f\x01\x1d", 5));
    CHECK(!ca_instruction_is_descriptor((const uint8_t *)"\x0f\x01\xf8", 3));
    CHECK(!ca_instruction_is_descriptor((const uint8_t *)"\x0f\x1f\x44", 3));
    CHECK(!ca_instruction_is_descriptor((const uint8_t *)"\x66\x66", 2));
}
