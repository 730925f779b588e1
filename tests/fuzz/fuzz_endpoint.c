/* The parser of pool names against every text. What is taken is written out and must be taken again, as the same. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "transport/endpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct endpoint endpoint, back;
	struct dp_err err;
	char *text = strndup((const char *)data, size), pool[1400], whole[1800];

	if (endpoint_parse(&endpoint, text, &err) == 0) {
		assert(strlen(endpoint.host) < sizeof(endpoint.host) && strlen(endpoint.path) < sizeof(endpoint.path));
		assert(!strstr(endpoint.name, ".."));
		endpoint_pool_text(&endpoint, pool, sizeof(pool));
		snprintf(whole, sizeof(whole), "%s%s%s%s%s", pool, endpoint.compress[0] ? "?compress=" : "", endpoint.compress,
			 endpoint.name[0] ? endpoint.kind == ENDPOINT_TCP ? "/" : "#" : "", endpoint.name);
		assert(endpoint_parse(&back, whole, &err) == 0);
		assert(memcmp(&endpoint, &back, sizeof(back)) == 0);
	}
	free(text);
	return 0;
}
