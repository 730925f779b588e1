#include "value.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

uint64_t random_next(uint64_t *state)
{
	uint64_t value = *state += 0x9e3779b97f4a7c15ull;

	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
	return value ^ (value >> 31);
}

uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

size_t value_key(uint64_t index, char text[32])
{
	return (size_t)snprintf(text, 32, "key:%012llu", (unsigned long long)index);
}

void value_fill(uint64_t index, uint32_t version, void *content, size_t bytes)
{
	uint64_t state = index * 0x2545f4914f6cdd1dull + version;
	uint8_t *at = content;

	for (size_t done = 0; done < bytes; done += sizeof(uint64_t)) {
		uint64_t word = random_next(&state);
		memcpy(at + done, &word, bytes - done < sizeof(word) ? bytes - done : sizeof(word));
	}
}
