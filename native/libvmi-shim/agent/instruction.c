/*
 * The length of an instruction, for those that functions and entry points begin with. Not a disassembler: what it does not
 * know it says so of, and no breakpoint is set there. Intel SDM vol. 2, appendix A.
 */
#include "session.h"

/* Bytes of ModRM, SIB and displacement at `at`; 0 if they do not fit. */
static uint32_t modrm(const uint8_t *bytes, uint32_t at) {
    uint8_t mod = bytes[at] >> 6, rm = bytes[at] & 7;
    uint32_t length = 1;
    if (mod == 3) return length;
    if (rm == 4) {
        length++;
        if (mod == 0 && (bytes[at + 1] & 7) == 5) length += 4;
    } else if (mod == 0 && rm == 5) {
        return 0; /* relative to RIP: emulated elsewhere it would still be right, but nobody has tried it */
    }
    return length + (mod == 1 ? 1 : mod == 2 ? 4 : 0);
}

struct ca_instruction ca_instruction_decode(const uint8_t bytes[16]) {
    static const uint8_t endbr64[] = {0xf3, 0x0f, 0x1e, 0xfa};
    struct ca_instruction none = {0, false};
    if (memcmp(bytes, endbr64, sizeof endbr64) == 0) return (struct ca_instruction){4, true};
    uint32_t at = 0, operands;
    bool word = false, wide = false;
    /* Prefixes: operand size (several, in padding), GS for per-CPU data, REX last. */
    while (at < 4 && (bytes[at] == 0x66 || bytes[at] == 0x65 || bytes[at] == 0x2e)) word |= bytes[at++] == 0x66;
    if ((bytes[at] & 0xf0) == 0x40) wide = (bytes[at++] & 8) != 0;
    uint8_t code = bytes[at++];
    if (code == 0x90) return (struct ca_instruction){at, true};
    if (code == 0x0f) {
        if (bytes[at] != 0x1f) return none;
        operands = modrm(bytes, at + 1);
        return operands == 0 ? none : (struct ca_instruction){at + 1 + operands, true};
    }
    /* PUSH, CALL and JMP relative: no operand-size prefix. */
    if (code >= 0x50 && code <= 0x57) return word ? none : (struct ca_instruction){at, false};
    if (code == 0xe8) return word || wide ? none : (struct ca_instruction){at + 4, false};
    if (code == 0xe9) return none;
    if (code >= 0xb8 && code <= 0xbf) return word ? none : (struct ca_instruction){at + (wide ? 8 : 4), false};
    switch (code) {
    case 0x01: case 0x03: case 0x09: case 0x0b: case 0x21: case 0x23: case 0x29: case 0x2b: case 0x31: case 0x33:
    case 0x39: case 0x3b: case 0x85: case 0x89: case 0x8b: case 0x8d:
        operands = modrm(bytes, at);
        return operands == 0 ? none : (struct ca_instruction){at + operands, false};
    case 0x83:
        operands = modrm(bytes, at);
        return operands == 0 ? none : (struct ca_instruction){at + operands + 1, false};
    case 0x81: case 0xc7:
        operands = modrm(bytes, at);
        return operands == 0 || word ? none : (struct ca_instruction){at + operands + 4, false};
    default: return none;
    }
}

bool ca_instruction_is_descriptor(const uint8_t *bytes, uint32_t count) {
    uint32_t at = 0;
    while (at < count && (bytes[at] == 0x66 || bytes[at] == 0x67 || bytes[at] == 0xf2 || bytes[at] == 0xf3 ||
                          (bytes[at] & 0xe7) == 0x26 || bytes[at] == 0x64 || bytes[at] == 0x65))
        at++;
    if (at < count && (bytes[at] & 0xf0) == 0x40) at++;
    if (at + 2 >= count || bytes[at] != 0x0f) return false;
    return (bytes[at + 1] == 0x00 || bytes[at + 1] == 0x01) && (bytes[at + 2] >> 3 & 7) <= 3;
}
