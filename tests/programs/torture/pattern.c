#include "torture.h"

#include <stdio.h>
#include <string.h>

#define MAGIC 0x70617474u /* "patt" */
#define STEP 0x9e3779b97f4a7c15ull

static uint64_t mix(uint64_t value)
{
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
	return value ^ (value >> 31);
}

uint64_t random_next(uint64_t *state)
{
	*state += STEP;
	return mix(*state);
}

uint64_t random_below(uint64_t *state, uint64_t limit)
{
	return random_next(state) % limit;
}

static bool version_is_zero(uint32_t version)
{
	return version == 0 || (version >> 2) % 8 == 7;
}

/* Word 0 to 2 name the page, so that a foreign or stale page can be named too; the last word alone tells small writes apart. */
static uint64_t pattern_word(uint64_t seed, uint32_t region, uint64_t index, uint32_t version, unsigned word)
{
	switch (word) {
	case 0:
		return (uint64_t)MAGIC << 32 | region;
	case 1:
		return index;
	case 2:
		return version >> 2;
	case PAGE_WORDS - 1:
		return seed ^ mix(version);
	default:
		return seed + word * STEP;
	}
}

static uint64_t pattern_seed(uint32_t region, uint64_t index, uint32_t version)
{
	return mix(mix((uint64_t)region << 32 | version >> 2) + index);
}

void pattern_write(void *page, uint32_t region, uint64_t index, uint32_t old_version, uint32_t version)
{
	uint64_t *words = page;
	uint64_t seed = pattern_seed(region, index, version);
	bool same_body = old_version && old_version >> 2 == version >> 2;

	if (version_is_zero(version)) {
		if (!same_body)
			memset(page, 0, PAGE_BYTES);
		return;
	}
	for (unsigned word = same_body ? PAGE_WORDS - 1 : 0; word < PAGE_WORDS; word++)
		words[word] = pattern_word(seed, region, index, version, word);
}

int pattern_find_wrong(const void *page, uint32_t region, uint64_t index, uint32_t version)
{
	const volatile uint64_t *words = page;
	uint64_t seed = pattern_seed(region, index, version);
	bool zero = version_is_zero(version);

	for (unsigned word = 0; word < PAGE_WORDS; word++)
		if (words[word] != (zero ? 0 : pattern_word(seed, region, index, version, word)))
			return (int)(word * sizeof(uint64_t));
	return -1;
}

bool page_is_zero(const void *page)
{
	const volatile uint64_t *words = page;

	for (unsigned word = 0; word < PAGE_WORDS; word++)
		if (words[word])
			return false;
	return true;
}

void pattern_describe(const void *page, char *text, size_t size)
{
	const uint64_t *words = page;

	if (page_is_zero(page))
		snprintf(text, size, "a page of zeros");
	else if (words[0] >> 32 == MAGIC && words[2] < UINT32_MAX >> 2) {
		uint32_t region = (uint32_t)words[0];
		for (uint32_t part = 0; part < 4; part++) {
			uint32_t version = (uint32_t)words[2] << 2 | part;
			if (pattern_find_wrong(page, region, words[1], version) == -1) {
				snprintf(text, size, "region %u page %llu version %u, whole", region,
					 (unsigned long long)words[1], version);
				return;
			}
		}
		snprintf(text, size, "region %u page %llu version %llu.., torn", region, (unsigned long long)words[1],
			 (unsigned long long)words[2] << 2);
	} else
		snprintf(text, size, "words %016llx %016llx .. %016llx", (unsigned long long)words[0],
			 (unsigned long long)words[1], (unsigned long long)words[PAGE_WORDS - 1]);
}
