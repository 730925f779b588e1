/* The manifest reader against every input, as it is and with its checksum put right, so that what lies behind is reached. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/base.h"
#include "pool/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int read_space(struct manifest_reader *reader)
{
	struct manifest_run run;
	uint64_t label, next = 0;
	int more;

	if (manifest_next_space(reader, &label) < 0)
		return -1;
	while ((more = manifest_next_run(reader, &run)) > 0) {
		assert(run.pgno >= next && run.pages && run.pgno + run.pages <= PGNO_END && run.slot &&
		       run.slot + run.pages > run.slot);
		next = run.pgno + run.pages;
	}
	return more;
}

static void read_all(const uint8_t *data, size_t size)
{
	struct manifest_reader reader;
	struct manifest_head head;
	struct message_text name;
	struct message_bytes content;
	char text[256];
	uint8_t sum = 0;

	if (manifest_open(&reader, data, size, &head) < 0)
		return;
	message_text_copy(head.name, text, sizeof(text));
	for (uint32_t i = 0; i < head.file_count; i++) {
		if (manifest_next_file(&reader, &name, &content) < 0)
			return;
		message_text_copy(name, text, sizeof(text));
		for (uint64_t byte = 0; byte < content.length; byte++)
			sum ^= ((const uint8_t *)content.at)[byte];
	}
	(void)sum;
	for (uint32_t i = 0; i < head.space_count; i++)
		if (read_space(&reader) < 0)
			return;
	manifest_finish(&reader);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	read_all(data, size);
	if (size < 16)
		return 0;
	uint8_t *right = malloc(size);

	memcpy(right, data, size);
	memcpy(right, "DPMANIF1", 8);
	uint64_t hash = htole64(XXH3_64bits(right + 16, size - 16));

	memcpy(right + 8, &hash, 8);
	read_all(right, size);
	free(right);
	return 0;
}
