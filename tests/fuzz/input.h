/* input: the bytes of a fuzz input, taken one after another. Behind the end there are zeros. */
#ifndef DP_TESTS_FUZZ_INPUT_H
#define DP_TESTS_FUZZ_INPUT_H

#include <stdint.h>
#include <string.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *at, *end;
};

static inline void next(struct input *input, void *to, size_t bytes)
{
	size_t part = DP_MIN(bytes, (size_t)(input->end - input->at));

	memset(to, 0, bytes);
	memcpy(to, input->at, part);
	input->at += part;
}

static inline uint8_t next_byte(struct input *input)
{
	return input->at < input->end ? *input->at++ : 0;
}

/* Mostly one that may be; else any. */
static inline uint64_t next_number(struct input *input)
{
	uint8_t byte = next_byte(input);
	uint64_t any = byte;

	if (byte >= 0xf0)
		next(input, &any, sizeof(any));
	return any;
}

#endif
