/* Codecs of images: real images (tests/fuzz/corpus/images, DP_CORPUS), hand-made odd ones, and every truncation of each. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/base.h"
#include "image/decode.h"

static char *corpus(const char *name, size_t *length)
{
	char path[512];
	char *bytes;
	snprintf(path, sizeof(path), "%s/images/%s", DP_CORPUS, name);
	ssize_t got = io_read_file(path, &bytes, 1 << 20);
	assert_true(got > 0);
	*length = (size_t)got;
	return bytes;
}

/* ---- hand-made images ---- */

struct builder {
	unsigned char bytes[1024];
	size_t length;
};

static void put_u32(struct builder *image, uint32_t value)
{
	memcpy(image->bytes + image->length, &value, 4);
	image->length += 4;
}

static void put_record(struct builder *image, const void *record, size_t size)
{
	put_u32(image, (uint32_t)size);
	memcpy(image->bytes + image->length, record, size);
	image->length += size;
}
#define RECORD(image, ...) put_record(image, (const unsigned char[]){__VA_ARGS__}, sizeof((const unsigned char[]){__VA_ARGS__}))

static void start_pagemap(struct builder *image)
{
	image->length = 0;
	put_u32(image, 0x54564319);
	put_u32(image, 0x56084025);
	RECORD(image, 0x08, 0x07); /* pages_id 7 */
}

static void pstree__real_image__names_tasks(void **state)
{
	size_t length, count;
	cleanup_free char *bytes = corpus("pstree", &length);
	struct image_task *tasks;
	assert_int_equal(image_decode_pstree(bytes, length, "pstree.img", &tasks, &count, NULL), 0);
	assert_int_equal(count, 3);
	assert_int_equal(tasks[0].ppid, 0);
	assert_int_equal(tasks[1].ppid, tasks[0].pid);
	assert_int_equal(tasks[0].threads, 1);
	assert_int_equal(tasks[0].sid, tasks[0].pid);
	free(tasks);
}

static void mm__real_image__areas_ascend_and_heap_is_lazy(void **state)
{
	size_t length, count, lazy = 0;
	cleanup_free char *bytes = corpus("mm", &length);
	struct image_vma *vmas;
	assert_int_equal(image_decode_mm(bytes, length, "mm-1.img", &vmas, &count, NULL), 0);
	assert_true(count > 10);
	for (size_t i = 0; i < count; i++) {
		assert_true(vmas[i].end <= 1ull << 47);
		if (image_vma_may_be_lazy(&vmas[i])) {
			lazy++;
			assert_true(vmas[i].flags & MAP_ANONYMOUS);
		}
	}
	assert_true(lazy >= 2 && lazy < count);
	free(vmas);
}

static void vma__kinds_that_criu_reads_eagerly__are_not_lazy(void **state)
{
	struct image_vma vma = {.flags = MAP_PRIVATE | MAP_ANONYMOUS};
	assert_true(image_vma_may_be_lazy(&vma));
	const uint32_t flags[] = {MAP_SHARED | MAP_ANONYMOUS, MAP_PRIVATE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB};
	for (size_t i = 0; i < ARRAY_LENGTH(flags); i++) {
		vma.flags = flags[i];
		assert_false(image_vma_may_be_lazy(&vma));
	}
	vma = (struct image_vma){.flags = MAP_PRIVATE | MAP_ANONYMOUS, .status = 1u << 3};
	assert_false(image_vma_may_be_lazy(&vma));
}

static void pagemap__real_image__is_encoded_to_the_same_bytes(void **state)
{
	size_t length, encoded_length;
	cleanup_free char *bytes = corpus("pagemap-lazy", &length);
	cleanup_free void *encoded = NULL;
	struct image_pagemap pagemap;
	assert_int_equal(image_decode_pagemap(bytes, length, "pagemap-1.img", &pagemap, NULL), 0);
	assert_int_equal(pagemap.pages_id, 1);
	assert_true(pagemap.count > 10);
	uint64_t file_page = 0;
	for (size_t i = 0; i < pagemap.count; i++) {
		assert_true(pagemap.runs[i].flags & PAGEMAP_PRESENT);
		assert_int_equal(pagemap.runs[i].file_page, file_page);
		file_page += pagemap.runs[i].pages;
	}
	assert_int_equal(images_encode_pagemap(&pagemap, &encoded, &encoded_length, NULL), 0);
	assert_int_equal(encoded_length, length);
	assert_memory_equal(encoded, bytes, length);
	image_pagemap_done(&pagemap);
}

static void pagemap__form_of_criu_4_1__counts_from_field_2(void **state)
{
	struct builder image;
	struct image_pagemap pagemap;
	start_pagemap(&image);
	RECORD(&image, 0x08, 0x80, 0x20, 0x10, 0x03);             /* vaddr 0x1000, 3 pages, no flags: present */
	RECORD(&image, 0x08, 0x80, 0x80, 0x01, 0x10, 0x02, 0x18, 0x01); /* vaddr 0x4000, 2 pages, in parent */
	RECORD(&image, 0x08, 0x80, 0x80, 0x02, 0x10, 0x01, 0x20, 0x06); /* vaddr 0x8000, 1 page, lazy and present */
	assert_int_equal(image_decode_pagemap(image.bytes, image.length, "p", &pagemap, NULL), 0);
	assert_int_equal(pagemap.count, 3);
	assert_int_equal(pagemap.runs[0].pgno, 1);
	assert_int_equal(pagemap.runs[0].pages, 3);
	assert_int_equal(pagemap.runs[0].flags, PAGEMAP_PRESENT);
	assert_int_equal(pagemap.runs[1].flags, PAGEMAP_PARENT);
	assert_int_equal(pagemap.runs[2].flags, PAGEMAP_PRESENT | PAGEMAP_LAZY);
	assert_int_equal(pagemap.runs[2].file_page, 3);
	image_pagemap_done(&pagemap);
}

static void pagemap__form_of_criu_4_2__counts_from_field_5(void **state)
{
	struct builder image;
	struct image_pagemap pagemap;
	start_pagemap(&image);
	RECORD(&image, 0x08, 0x80, 0x20, 0x10, 0x00, 0x20, 0x02, 0x28, 0x80, 0x80, 0x80, 0x80, 0x01);
	assert_int_equal(image_decode_pagemap(image.bytes, image.length, "p", &pagemap, NULL), 0);
	assert_int_equal(pagemap.runs[0].pages, 1ull << 28);
	assert_int_equal(pagemap.runs[0].flags, PAGEMAP_LAZY);
	image_pagemap_done(&pagemap);
}

static void pagemap__compressed_pages_of_criu_4_3__are_refused_clearly(void **state)
{
	struct builder image;
	struct image_pagemap pagemap;
	struct dp_err err = {0};
	start_pagemap(&image);
	RECORD(&image, 0x08, 0x80, 0x20, 0x10, 0x00, 0x20, 0x04, 0x28, 0x01, 0x32, 0x02, 0x08, 0x01);
	assert_int_equal(image_decode_pagemap(image.bytes, image.length, "pagemap-9.img", &pagemap, &err), -EBADMSG);
	assert_non_null(strstr(err.text, "pagemap-9.img"));
	assert_non_null(strstr(err.text, "4.3"));
}

static void pagemap__impossible_entries__are_refused(void **state)
{
	static const struct {
		size_t size;
		unsigned char record[16];
	} bad[] = {
		{5, {0x08, 0x81, 0x20, 0x10, 0x01}},             /* not page-aligned */
		{5, {0x08, 0x80, 0x20, 0x10, 0x00}},             /* no pages */
		{2, {0x10, 0x01}},                               /* no address */
		{7, {0x08, 0x80, 0x20, 0x10, 0x01, 0x20, 0x08}}, /* unknown flag */
		/* wraps */
		{16, {0x08, 0x80, 0x20, 0x10, 0x00, 0x28, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}},
		{9, {0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x20, 0x01}}, /* beyond 2^47, then garbage */
	};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		struct builder image;
		struct image_pagemap pagemap;
		start_pagemap(&image);
		put_record(&image, bad[i].record, bad[i].size);
		assert_int_equal(image_decode_pagemap(image.bytes, image.length, "p", &pagemap, NULL), -EBADMSG);
	}
	struct builder image;
	struct image_pagemap pagemap;
	start_pagemap(&image); /* the second entry lies inside the first */
	RECORD(&image, 0x08, 0x80, 0x20, 0x10, 0x03);
	RECORD(&image, 0x08, 0x80, 0x40, 0x10, 0x01);
	assert_int_equal(image_decode_pagemap(image.bytes, image.length, "p", &pagemap, NULL), -EBADMSG);
}

static void files__real_image__names_each_path_once(void **state)
{
	size_t length, count;
	cleanup_free char *bytes = corpus("files", &length);
	struct image_file *files;
	bool libc_seen = false;
	assert_int_equal(image_decode_files(bytes, length, NULL, 0, &files, &count, NULL), 0);
	for (size_t i = 0; i < count; i++) {
		assert_int_equal(files[i].path[0], '/');
		if (strstr(files[i].path, "/libc.so.6")) {
			libc_seen = true;
			assert_int_equal(files[i].build_id_bytes, 20);
			assert_true(files[i].size_bytes > 100000 && files[i].size_bytes < UINT64_MAX);
		}
		if (strcmp(files[i].path, "/dev/null") == 0)
			assert_true(files[i].size_bytes == UINT64_MAX);
		for (size_t j = 0; j < i; j++)
			assert_string_not_equal(files[i].path, files[j].path);
	}
	assert_true(libc_seen);
	image_files_free(files, count);
}

static void check_files__differences__are_named_each(void **state)
{
	char directory[] = "/tmp/dp-images-XXXXXX";
	assert_non_null(mkdtemp(directory));
	cleanup_fd int root = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(mkdirat(root, "etc", 0700), 0);
	cleanup_free char *path = format_text("%s/etc/here", directory);
	assert_int_equal(io_write_file(path, "12345", 5, 0600), 0);
	struct image_file files[] = {
		{.path = (char *)"/etc/here", .size_bytes = 5},
		{.path = (char *)"/etc/here", .size_bytes = 6},
		{.path = (char *)"/etc/gone", .size_bytes = UINT64_MAX},
		{.path = (char *)"/etc", .size_bytes = UINT64_MAX},
	};
	cleanup_free char *report = NULL, *none = NULL;
	assert_int_equal(images_check_files(root, files, 4, &report), 2);
	assert_non_null(strstr(report, "/etc/here has 5 bytes here, 6 in the snapshot\n"));
	assert_non_null(strstr(report, "/etc/gone is missing here\n"));
	assert_int_equal(images_check_files(root, files, 1, &none), 0);
	assert_null(none);
	assert_int_equal(remove_tree(directory), 0);
}

static void check_files__own_executable__has_its_build_id(void **state)
{
	char *head;
	unsigned char id[32];
	size_t id_bytes;
	ssize_t length = io_read_file("/proc/self/exe", &head, 1 << 28);
	assert_true(length > 0);
	int found = image_elf_build_id(head, (size_t)length, id, &id_bytes);
	free(head);
	if (found != 1)
		skip(); /* the tool chain makes no build ids */
	char exe[512];
	ssize_t used = readlink("/proc/self/exe", exe, sizeof(exe) - 1);
	assert_true(used > 0);
	exe[used] = 0;
	struct image_file file = {.path = exe, .size_bytes = UINT64_MAX, .build_id_bytes = id_bytes};
	memcpy(file.build_id, id, sizeof(id));
	char *report;
	assert_int_equal(images_check_files(AT_FDCWD, &file, 1, &report), 0);
	file.build_id[3] ^= 1;
	assert_int_equal(images_check_files(AT_FDCWD, &file, 1, &report), 1);
	assert_non_null(strstr(report, "build id"));
	free(report);
}

static void namespaces__bare_process__has_none_of_its_own(void **state)
{
	char directory[] = "/tmp/dp-images-XXXXXX";
	assert_non_null(mkdtemp(directory));
	size_t length, count;
	cleanup_free char *pstree = corpus("pstree", &length);
	struct image_task *tasks;
	assert_int_equal(image_decode_pstree(pstree, length, "pstree.img", &tasks, &count, NULL), 0);
	const char *names[] = {"pstree", "inventory", "ids"};
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		cleanup_free char *bytes = corpus(names[i], &length);
		cleanup_free char *path = i < 2 ? format_text("%s/%s.img", directory, names[i]) :
						  format_text("%s/ids-%d.img", directory, tasks[0].pid);
		assert_int_equal(io_write_file(path, bytes, length, 0600), 0);
	}
	free(tasks);
	cleanup_fd int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct image_namespaces own;
	assert_int_equal(images_read_namespaces(fd, "inventory.img", &own, NULL), 0);
	assert_false(own.pid || own.mnt || own.net || own.user || own.uts || own.ipc);
	assert_int_equal(remove_tree(directory), 0);
}

static void stats__real_image__tells_frozen_time(void **state)
{
	size_t length;
	uint64_t frozen_ns = 0;
	cleanup_free char *bytes = corpus("stats-dump", &length);
	assert_int_equal(image_decode_stats(bytes, length, &frozen_ns, NULL), 0);
	assert_true(frozen_ns > 1000000 && frozen_ns < 100000000000ull);
}

/* A cut at a record's border is a shorter image; any other cut must be refused. Each cut is a block of its own size, so that
 * AddressSanitizer sees any read beyond it. */
static void each_image__cut_at_every_byte__never_reads_beyond(void **state)
{
	static const char *const names[] = {"pstree", "mm", "pagemap", "pagemap-lazy", "files", "inventory", "ids", "stats-dump"};
	for (size_t n = 0; n < ARRAY_LENGTH(names); n++) {
		size_t length, count, accepted = 0;
		cleanup_free char *bytes = corpus(names[n], &length);
		for (size_t cut = 0; cut < length; cut++) {
			cleanup_free char *copy = malloc(cut + !cut);
			memcpy(copy, bytes, cut);
			struct image_task *tasks;
			struct image_vma *vmas;
			struct image_pagemap pagemap;
			struct image_file *files;
			struct image_kobj_ids ids;
			uint64_t frozen_ns;
			switch (names[n][0] == 'p' ? names[n][1] : names[n][0]) {
			case 's':
				if (names[n][0] == 's')
					accepted += image_decode_stats(copy, cut, &frozen_ns, NULL) == 0;
				else if (image_decode_pstree(copy, cut, "x", &tasks, &count, NULL) == 0)
					free(tasks), accepted++;
				break;
			case 'm':
				if (image_decode_mm(copy, cut, "x", &vmas, &count, NULL) == 0)
					free(vmas), accepted++;
				break;
			case 'a':
				if (image_decode_pagemap(copy, cut, "x", &pagemap, NULL) == 0)
					image_pagemap_done(&pagemap), accepted++;
				break;
			case 'f':
				if (image_decode_files(copy, cut, NULL, 0, &files, &count, NULL) == 0)
					image_files_free(files, count), accepted++;
				break;
			case 'i':
				accepted += names[n][1] == 'n' ? image_decode_inventory(copy, cut, &ids, NULL) == 0 :
								 image_decode_ids(copy, cut, "x", &ids, NULL) == 0;
				break;
			}
		}
		assert_true(accepted < length / 8); /* no more than there are records */
	}
}

static void missing_image__is_named(void **state)
{
	struct dp_err err = {0};
	struct image_task *tasks;
	size_t count;
	cleanup_fd int fd = open("/proc/self", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_int_equal(images_read_pstree(fd, &tasks, &count, &err), -ENOENT);
	assert_non_null(strstr(err.text, "pstree.img"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(pstree__real_image__names_tasks),
		cmocka_unit_test(mm__real_image__areas_ascend_and_heap_is_lazy),
		cmocka_unit_test(vma__kinds_that_criu_reads_eagerly__are_not_lazy),
		cmocka_unit_test(pagemap__real_image__is_encoded_to_the_same_bytes),
		cmocka_unit_test(pagemap__form_of_criu_4_1__counts_from_field_2),
		cmocka_unit_test(pagemap__form_of_criu_4_2__counts_from_field_5),
		cmocka_unit_test(pagemap__compressed_pages_of_criu_4_3__are_refused_clearly),
		cmocka_unit_test(pagemap__impossible_entries__are_refused),
		cmocka_unit_test(files__real_image__names_each_path_once),
		cmocka_unit_test(check_files__differences__are_named_each),
		cmocka_unit_test(check_files__own_executable__has_its_build_id),
		cmocka_unit_test(namespaces__bare_process__has_none_of_its_own),
		cmocka_unit_test(stats__real_image__tells_frozen_time),
		cmocka_unit_test(each_image__cut_at_every_byte__never_reads_beyond),
		cmocka_unit_test(missing_image__is_named),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
