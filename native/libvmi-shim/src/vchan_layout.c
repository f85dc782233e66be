/* Where the rings of a vchan lie: xen/io/libxenvchan.h. */
#include "vchan.h"

static uint32_t order_of(uint32_t bytes) {
    uint32_t order = CA_VCHAN_ORDER_MIN;
    while (order < CA_VCHAN_ORDER_MAX && 1u << order < bytes) order++;
    return order;
}

void ca_vchan_orders(uint32_t left_bytes, uint32_t right_bytes, uint32_t *left, uint32_t *right) {
    *left = order_of(left_bytes);
    *right = order_of(right_bytes);
    /* "Only one of the two orders can be 10 (or 11)": they are places in the one page. */
    if (*left == *right && *left < 12) ++*right;
    /* The list of grants of the largest ring reaches past 1024, where the smallest lies; 2048 is free for the same price. */
    if (*left == 10 && *right >= 12) *left = 11;
    if (*right == 10 && *left >= 12) *right = 11;
}

int32_t ca_vchan_layout(uint32_t left, uint32_t right) {
    bool inside = left >= CA_VCHAN_ORDER_MIN && left <= CA_VCHAN_ORDER_MAX && right >= CA_VCHAN_ORDER_MIN &&
                  right <= CA_VCHAN_ORDER_MAX && !(left == right && left < 12);
    uint32_t lowest = left < right ? left : right;
    uint32_t room = lowest < 12 ? 1u << lowest : CA_PAGE;
    uint64_t list = sizeof(struct ca_vchan_page) +
                    sizeof(uint32_t) * (uint64_t)(inside ? ca_vchan_ring_pages(left) + ca_vchan_ring_pages(right) : 0);
    if (inside && list <= room) return CA_OK;
    return ca_fail(CA_E_PROTOCOL, "the server's shared page is malformed: rings of orders %u and %u", left, right);
}
