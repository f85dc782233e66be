#include <stdarg.h>
#include <stdio.h>

#include "shim.h"

static _Thread_local char last_error[512];

int32_t ca_fail(int32_t code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return code;
}

int32_t ca_last_error(void *text, uint32_t size) {
    size_t length = strlen(last_error);
    if (text != NULL && size > 0) {
        size_t cut = length < size - 1 ? length : size - 1;
        memcpy(text, last_error, cut);
        ((char *)text)[cut] = 0;
    }
    return (int32_t)length;
}

int32_t ca_abi_version(void) { return CA_ABI_VERSION; }
