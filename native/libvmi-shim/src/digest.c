/*
 * SHA-256 of pages where they are. The hash is OpenSSL's: Node exports it from its own executable; elsewhere it is
 * libcrypto.so.3. Of its interfaces the low-level one is used: looking an algorithm up anew for each page would cost
 * as much as hashing it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "shim.h"

#define MAGIC 0x44494745u /* DIGE */

/* SHA256_CTX is 112 bytes in OpenSSL 1.1 and 3 (openssl/sha.h). */
union context {
    uint64_t align;
    uint8_t bytes[256];
};

static struct {
    int (*init)(void *);
    int (*update)(void *, const void *, size_t);
    int (*final)(unsigned char *, void *);
} sha256;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static bool resolve(void *library) {
    void *init = dlsym(library, "SHA256_Init"), *update = dlsym(library, "SHA256_Update");
    void *final = dlsym(library, "SHA256_Final");
    if (init == NULL || update == NULL || final == NULL) return false;
    /* POSIX lets a pointer of dlsym be a function; ISO C wants it moved as bytes. */
    memcpy(&sha256.init, &init, sizeof init);
    memcpy(&sha256.update, &update, sizeof update);
    memcpy(&sha256.final, &final, sizeof final);
    return true;
}

static void find_openssl(void) {
    if (resolve(RTLD_DEFAULT)) return;
    void *library = dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL);
    if (library != NULL) resolve(library);
}

struct cursor {
    struct ca_cursor head;
    uint64_t page;
};

int32_t ca_digest(int32_t handle, uint32_t flags, uint32_t budget_us, uint64_t space, uint64_t start, uint32_t pages,
                  void *out, void *present, void *cursor, void *status) {
    bool first;
    int32_t result = ca_cursor_open(cursor, MAGIC, &first);
    if (result != CA_OK) return result;
    if (out == NULL || present == NULL || status == NULL || !ca_space_valid(space) || (start & (CA_PAGE - 1)) != 0 ||
        (pages > 0 && (uint64_t)pages - 1 > (UINT64_MAX - start) / CA_PAGE))
        return ca_fail(CA_E_ARGUMENT, "a buffer is missing, or the range is not of whole pages");
    struct cursor *c = cursor;
    if (c->page > pages) return ca_fail(CA_E_CURSOR, "the cursor is damaged");
    pthread_once(&once, find_openssl);
    if (sha256.init == NULL) return ca_fail(CA_E_CRYPTO, "neither this process nor libcrypto.so.3 has SHA256_Init");

    struct ca_mem *mem;
    result = ca_enter(handle, flags, &mem);
    if (result != CA_OK) return result;
    struct ca_slice slice;
    ca_slice_start(&slice, budget_us);
    while (c->page < pages) {
        uint8_t bytes[CA_PAGE];
        struct ca_fault fault;
        uint8_t *to = (uint8_t *)out + c->page * 32;
        bool good = ca_load(mem, space, start + c->page * CA_PAGE, bytes, CA_PAGE, &fault);
        if (good) {
            union context context;
            good = sha256.init(&context) == 1 && sha256.update(&context, bytes, CA_PAGE) == 1 &&
                   sha256.final(to, &context) == 1;
        }
        if (!good) memset(to, 0, 32);
        ((uint8_t *)present)[c->page] = good ? 1 : 0;
        c->page++;
        if (c->page < pages && ca_slice_spent(&slice, mem, good ? 64 : 1)) {
            result = CA_MORE;
            break;
        }
    }
    if (result == CA_OK) c->head.done = 1;
    ((uint64_t *)status)[0] = c->page;
    ca_leave(mem);
    return result;
}
