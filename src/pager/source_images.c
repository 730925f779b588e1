#include "pager/source_images.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/base.h"
#include "image/images.h"
#include "pager/lazy_spaces.h"

#define GENERATIONS 64 /* of incremental checkpoints; `parent` links may form a circle */

/* pages-N.img of one generation. */
struct pages_file {
	uint32_t id;
	unsigned generation;
	uint8_t *data;
	uint64_t bytes;
	struct pages_file *next;
};

struct source_images {
	struct source source;
	struct lazy_spaces spaces;
	struct pages_file *files;
	uint64_t bytes_in;
	/* only while the images are read: */
	int generation_fd[GENERATIONS]; /* [0] is the newest, borrowed */
	unsigned generations;
};

static struct source_images *of(const struct source *source)
{
	return (struct source_images *)source;
}

/* ---- reading the images ---- */

static int map_file(struct source_images *images, unsigned generation, uint32_t id, const struct pages_file **found,
		    struct dp_err *err)
{
	for (const struct pages_file *file = images->files; file; file = file->next)
		if (file->id == id && file->generation == generation) {
			*found = file;
			return 0;
		}
	char name[64];
	struct stat status;
	snprintf(name, sizeof(name), "pages-%u.img", id);
	cleanup_fd int fd = openat(images->generation_fd[generation], name, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status))
		return dp_fail_errno(err, errno, "open %s", name);
	struct pages_file *file = calloc(1, sizeof(*file));
	if (!file)
		return dp_fail(err, ENOMEM, "out of memory");
	*file = (struct pages_file){ id, generation, NULL, (uint64_t)status.st_size, images->files };
	if (file->bytes)
		file->data = mmap(NULL, file->bytes, PROT_READ, MAP_PRIVATE, fd, 0);
	if (file->data == MAP_FAILED) {
		free(file);
		return dp_fail_errno(err, errno, "map %s", name);
	}
	images->files = file;
	*found = file;
	return 0;
}

static int add_present(struct source_images *images, struct lazy_task *task, unsigned generation, uint32_t id, uint64_t pgno,
		       uint64_t pages, uint64_t file_page, struct dp_err *err)
{
	const struct pages_file *file = NULL;
	int ret = map_file(images, generation, id, &file, err);
	if (ret)
		return ret;
	uint64_t held = file->bytes / PAGE_BYTES;
	if (file_page > held || pages > held - file_page)
		return dp_fail(err, EBADMSG, "pages-%u.img ends at page %lu, task %d has pages up to %lu in it: the file was cut",
			       id, held, task->vpid, file_page + pages);
	return lazy_task_add(task, pgno, pages, file->data + file_page * PAGE_BYTES);
}

static int open_generation(struct source_images *images, unsigned generation, struct dp_err *err)
{
	if (generation < images->generations)
		return 0;
	if (generation == GENERATIONS)
		return dp_fail(err, EBADMSG, "more than %d `parent` links: is it a circle?", GENERATIONS);
	int fd = openat(images->generation_fd[generation - 1], "parent", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return dp_fail_errno(err, errno, "open the images' `parent`, which has some of the pages");
	images->generation_fd[images->generations++] = fd;
	return 0;
}

/* Pages that an older generation has: found there, or further back. */
static int add_from_parent(struct source_images *images, struct lazy_task *task, unsigned generation, uint64_t pgno,
			   uint64_t pages, struct dp_err *err)
{
	struct image_pagemap map;
	char name[64];
	int ret = open_generation(images, generation, err);
	if (ret)
		return ret;
	snprintf(name, sizeof(name), "pagemap-%d.img", task->vpid);
	ret = images_read_pagemap(images->generation_fd[generation], name, &map, err);
	uint64_t end = pgno + pages;
	for (size_t i = 0; !ret && i < map.count && pgno < end; i++) {
		const struct image_run *run = &map.runs[i];
		if (run->pgno + run->pages <= pgno)
			continue;
		if (run->pgno > pgno)
			break;
		uint64_t skip = pgno - run->pgno, count = DP_MIN(run->pages - skip, end - pgno);
		if (run->flags & PAGEMAP_PRESENT)
			ret = add_present(images, task, generation, map.pages_id, pgno, count, run->file_page + skip, err);
		else if (run->flags & PAGEMAP_PARENT)
			ret = add_from_parent(images, task, generation + 1, pgno, count, err);
		else
			break;
		pgno += count;
	}
	image_pagemap_done(&map);
	if (!ret && pgno < end)
		ret = dp_fail(err, EBADMSG, "%s of generation %u lacks page %#lx that a later checkpoint refers to", name,
			      generation, pgno << PAGE_SHIFT);
	return ret;
}

static int add_run(void *context, struct lazy_task *task, const struct image_pagemap *map, const struct image_run *run,
		   struct dp_err *err)
{
	if (run->flags & PAGEMAP_PRESENT)
		return add_present(context, task, 0, map->pages_id, run->pgno, run->pages, run->file_page, err);
	if (run->flags & PAGEMAP_PARENT)
		return add_from_parent(context, task, 1, run->pgno, run->pages, err);
	return dp_fail(err, ENODATA, "the pages of task %d are not in the images: they stayed with `criu dump --lazy-pages`; "
		       "say --page-server --address HOST --port PORT", task->vpid);
}

/* ---- the source ---- */

static int find_space(struct source *source, int vpid, uint64_t *space, struct dp_err *err)
{
	return lazy_spaces_open(&of(source)->spaces, vpid, space, err);
}

/* Both UFFDIO_COPY and a plain read of a page that the disk cannot give would end badly: it shows here. */
static int load(const struct lazy_piece *piece)
{
	uint64_t bytes = piece->pages * PAGE_BYTES;
	while (madvise((void *)piece->data, bytes, MADV_POPULATE_READ)) {
		if (errno == EFAULT || errno == EHWPOISON)
			return -EIO;
		if (errno != EINTR && errno != EAGAIN)
			return 0; /* a file system that cannot; the pages come as they are read */
	}
	return 0;
}

/* The request is answered to its end, by pages that are not looked at. */
static int give_up_rest(struct source_images *images, uint64_t cookie, struct page_range left, const struct page_range *ranges,
			size_t count)
{
	struct source_handler *handler = &images->source.handler;
	if (left.pages)
		handler->on_pages(handler->context, cookie, left, NULL, count == 0);
	for (size_t i = 0; i < count; i++)
		handler->on_pages(handler->context, cookie, ranges[i], NULL, i + 1 == count);
	return 0;
}

static int get(struct source *source, enum request_class class, uint64_t space, const struct page_range *ranges, size_t count,
	       uint64_t cookie)
{
	struct source_images *images = of(source);
	for (size_t i = 0; i < count; i++) {
		struct page_range left = ranges[i];
		while (left.pages) {
			struct lazy_piece piece;
			int ret = lazy_spaces_find(&images->spaces, space, left, &piece);
			if (!ret)
				ret = load(&piece);
			if (ret)
				return ret;
			left.pgno += piece.pages;
			left.pages -= piece.pages;
			images->bytes_in += piece.pages * PAGE_BYTES;
			source->handler.on_pages(source->handler.context, cookie, (struct page_range){ piece.pgno, piece.pages },
						 piece.data, !left.pages && i + 1 == count);
			if (!lazy_spaces_known(&images->spaces, space)) /* its process ended meanwhile: nobody wants the rest */
				return give_up_rest(images, cookie, left, ranges + i + 1, count - i - 1);
		}
	}
	return 0;
}

static int move(struct source *source, uint64_t space, uint64_t from_pgno, uint64_t to_pgno, uint64_t pages, uint64_t cookie)
{
	return lazy_spaces_move(&of(source)->spaces, space, from_pgno, to_pgno, pages);
}

static int fork_space(struct source *source, uint64_t parent, uint64_t *child, uint64_t cookie)
{
	return lazy_spaces_fork(&of(source)->spaces, parent, child);
}

static int space_free(struct source *source, uint64_t space, uint64_t cookie)
{
	lazy_spaces_free(&of(source)->spaces, space);
	return 0;
}

static int receive(struct source *source)
{
	return 0;
}

static int fd(const struct source *source)
{
	return -1;
}

static bool wants_write(const struct source *source)
{
	return false;
}

static void bytes(const struct source *source, uint64_t *in, uint64_t *out)
{
	*in = of(source)->bytes_in;
	*out = 0;
}

static void source_free(struct source *source)
{
	struct source_images *images = of(source);
	for (struct pages_file *file = images->files, *next; file; file = next) {
		next = file->next;
		if (file->data)
			munmap(file->data, file->bytes);
		free(file);
	}
	lazy_spaces_done(&images->spaces);
	free(images);
}

static const struct source_ops images_ops = {
	.find_space = find_space,
	.get = get,
	.move = move,
	.fork = fork_space,
	.space_free = space_free,
	.receive = receive,
	.fd = fd,
	.wants_write = wants_write,
	.bytes = bytes,
	.free = source_free,
};

int source_images_new(struct source **source, int images_fd, struct dp_err *err)
{
	struct source_images *images = calloc(1, sizeof(*images));
	if (!images)
		return dp_fail(err, ENOMEM, "out of memory");
	images->source.ops = &images_ops;
	images->generation_fd[0] = images_fd;
	images->generations = 1;
	int ret = lazy_spaces_load(&images->spaces, images_fd, add_run, images, err);
	for (unsigned i = 1; i < images->generations; i++)
		close(images->generation_fd[i]);
	images->generations = 0;
	if (ret) {
		source_free(&images->source);
		return ret;
	}
	*source = &images->source;
	return 0;
}
