/* Every image decoder against every input: whatever the bytes, they are refused or lead to a result that holds what images.h
 * promises. Built with -Dfuzz=true (clang's libFuzzer); corpus: corpus/images, real images of small processes. */
#include <assert.h>
#include <stdlib.h>

#include "base/base.h"
#include "image/decode.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_pagemap(const uint8_t *data, size_t size)
{
	struct image_pagemap pagemap, again;
	if (image_decode_pagemap(data, size, "pagemap", &pagemap, NULL) < 0)
		return;
	for (size_t i = 1; i < pagemap.count; i++)
		assert(pagemap.runs[i - 1].pgno + pagemap.runs[i - 1].pages <= pagemap.runs[i].pgno);
	void *bytes;
	size_t length;
	assert(images_encode_pagemap(&pagemap, &bytes, &length, NULL) == 0);
	assert(image_decode_pagemap(bytes, length, "again", &again, NULL) == 0);
	assert(again.count == pagemap.count && again.pages_id == pagemap.pages_id);
	for (size_t i = 0; i < again.count; i++)
		assert(again.runs[i].pgno == pagemap.runs[i].pgno && again.runs[i].pages == pagemap.runs[i].pages &&
		       again.runs[i].flags == pagemap.runs[i].flags && again.runs[i].file_page == pagemap.runs[i].file_page);
	free(bytes);
	image_pagemap_done(&again);
	image_pagemap_done(&pagemap);
}

static void check_files(const uint8_t *data, size_t size)
{
	struct image_file *files;
	size_t count, split = size / 2;
	if (image_decode_files(data, size, NULL, 0, &files, &count, NULL) == 0)
		image_files_free(files, count);
	if (image_decode_files(data, split, data + split, size - split, &files, &count, NULL) == 0)
		image_files_free(files, count);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct image_task *tasks;
	struct image_vma *vmas;
	struct image_kobj_ids ids;
	unsigned char id[32];
	uint64_t frozen_ns;
	size_t count, id_bytes;
	if (image_decode_pstree(data, size, "pstree", &tasks, &count, NULL) == 0)
		free(tasks);
	if (image_decode_mm(data, size, "mm", &vmas, &count, NULL) == 0) {
		for (size_t i = 1; i < count; i++)
			assert(vmas[i - 1].end <= vmas[i].start);
		free(vmas);
	}
	check_pagemap(data, size);
	check_files(data, size);
	image_decode_inventory(data, size, &ids, NULL);
	image_decode_ids(data, size, "ids", &ids, NULL);
	image_decode_stats(data, size, &frozen_ns, NULL);
	image_elf_build_id(data, size, id, &id_bytes);
	return 0;
}
