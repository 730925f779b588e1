/* value: what key number i holds at version v; the same in every program that fills or checks a Redis. */
#ifndef DP_TESTS_REDIS_VALUE_H
#define DP_TESTS_REDIS_VALUE_H

#include <stddef.h>
#include <stdint.h>

/* "key:000000000042"; text has room for 32 bytes. Returns its length. */
size_t value_key(uint64_t index, char text[32]);
/* Fills bytes of content that compress badly and differ in each word between versions. */
void value_fill(uint64_t index, uint32_t version, void *content, size_t bytes);
uint64_t random_next(uint64_t *state);
uint64_t clock_ns(void);

#endif
