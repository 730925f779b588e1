/* pstree, mm, pagemap, inventory, ids, stats. Files are in files.c. */
#include "image/images.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/base.h"
#include "image/criu.pb-c.h"
#include "image/decode.h"
#include "image/frame.h"

#define ADDRESS_END ((uint64_t)1 << 47)
#define VMA_STATUS_VSYSCALL (1u << 2)
#define VMA_STATUS_VDSO (1u << 3)
#define VMA_STATUS_VVAR (1u << 12)
#define PID_LIMIT (1u << 22)

/* Room for one more element of a growing array; the element is zeroed. */
static void *grow(void **array, size_t *count, size_t element_bytes)
{
	if ((*count & (*count - 1)) == 0) { /* 0 and powers of two: double */
		size_t room = *count ? *count * 2 : 1;
		void *wider = reallocarray(*array, room, element_bytes);
		if (!wider)
			return NULL;
		*array = wider;
	}
	void *element = (char *)*array + *count * element_bytes;
	memset(element, 0, element_bytes);
	(*count)++;
	return element;
}

/* ---- pstree ---- */

static int take_task(const struct image_frame *frame, const Criu__PstreeEntry *entry, struct image_task *task, struct dp_err *err)
{
	if (!entry->has_pid || entry->pid == 0 || entry->pid > PID_LIMIT)
		return image_frame_bad(frame, err, "a task without a proper pid");
	if (entry->ppid > PID_LIMIT || entry->pgid > PID_LIMIT || entry->sid > PID_LIMIT)
		return image_frame_bad(frame, err, "a task with a parent, group or session that is no pid");
	*task = (struct image_task){.pid = (int)entry->pid, .ppid = (int)entry->ppid, .pgid = (int)entry->pgid,
				    .sid = (int)entry->sid, .threads = entry->n_threads};
	return 0;
}

int image_decode_pstree(const void *bytes, size_t length, const char *name, struct image_task **tasks, size_t *count,
			struct dp_err *err)
{
	struct image_frame frame;
	void *array = NULL;
	size_t used = 0, size;
	const unsigned char *record;
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_PSTREE, name, err);
	while (rc == 0 && (rc = image_frame_next(&frame, &record, &size, err)) > 0) {
		Criu__PstreeEntry *entry = criu__pstree_entry__unpack(NULL, size, record);
		struct image_task *task = entry ? grow(&array, &used, sizeof(*task)) : NULL;
		rc = task ? take_task(&frame, entry, task, err) : image_frame_bad(&frame, err, "a record that cannot be read");
		if (entry)
			criu__pstree_entry__free_unpacked(entry, NULL);
		if (rc < 0)
			break;
	}
	if (rc == 0 && used == 0)
		rc = image_frame_bad(&frame, err, "names no task");
	if (rc < 0) {
		free(array);
		return rc;
	}
	*tasks = array;
	*count = used;
	return 0;
}

int images_read_pstree(int images_fd, struct image_task **tasks, size_t *count, struct dp_err *err)
{
	cleanup_free char *bytes = NULL;
	ssize_t length = image_load(images_fd, "pstree.img", &bytes, err);
	if (length < 0)
		return (int)length;
	return image_decode_pstree(bytes, (size_t)length, "pstree.img", tasks, count, err);
}

/* ---- mm ---- */

static int take_vma(const struct image_frame *frame, const Criu__VmaEntry *entry, struct image_vma *vma, struct dp_err *err)
{
	if (!entry->has_start || !entry->has_end || entry->start >= entry->end ||
	    (entry->start | entry->end) & (PAGE_BYTES - 1) || entry->end > ADDRESS_END)
		return image_frame_bad(frame, err, "an area with impossible addresses");
	*vma = (struct image_vma){.start = entry->start, .end = entry->end, .prot = entry->prot, .flags = entry->flags,
				  .status = entry->status, .madv = entry->madv};
	return 0;
}

/* Guards are appended to the list, unsorted, and are no areas of their own; the vsyscall page is the kernel's. */
static int take_vmas(const struct image_frame *frame, const Criu__MmEntry *mm, struct image_vma *vmas, size_t *count,
		     struct dp_err *err)
{
	*count = 0;
	for (size_t i = 0; i < mm->n_vmas; i++) {
		if (mm->vmas[i]->status & (VMA_STATUS_GUARD | VMA_STATUS_VSYSCALL))
			continue;
		int rc = take_vma(frame, mm->vmas[i], &vmas[*count], err);
		if (rc < 0)
			return rc;
		if (*count > 0 && vmas[*count - 1].end > vmas[*count].start)
			return image_frame_bad(frame, err, "areas that overlap or are out of order");
		(*count)++;
	}
	return 0;
}

int image_decode_mm(const void *bytes, size_t length, const char *name, struct image_vma **vmas, size_t *count,
		    struct dp_err *err)
{
	struct image_frame frame;
	const unsigned char *record;
	size_t size;
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_MM, name, err);
	if (rc < 0)
		return rc;
	rc = image_frame_next(&frame, &record, &size, err);
	if (rc <= 0)
		return rc < 0 ? rc : image_frame_bad(&frame, err, "holds no record");
	if (frame.left > 0)
		return image_frame_bad(&frame, err, "holds more than one record");
	Criu__MmEntry *mm = criu__mm_entry__unpack(NULL, size, record);
	if (!mm)
		return image_frame_bad(&frame, err, "a record that cannot be read");
	struct image_vma *array = calloc(mm->n_vmas + 1, sizeof(*array));
	rc = array ? take_vmas(&frame, mm, array, count, err) : dp_fail_errno(err, ENOMEM, "%s", name);
	criu__mm_entry__free_unpacked(mm, NULL);
	if (rc < 0)
		free(array);
	else
		*vmas = array;
	return rc;
}

int images_read_mm(int images_fd, int pid, struct image_vma **vmas, size_t *count, struct dp_err *err)
{
	char name[64];
	cleanup_free char *bytes = NULL;
	snprintf(name, sizeof(name), "mm-%d.img", pid);
	ssize_t length = image_load(images_fd, name, &bytes, err);
	if (length < 0)
		return (int)length;
	return image_decode_mm(bytes, (size_t)length, name, vmas, count, err);
}

bool image_vma_may_be_lazy(const struct image_vma *vma)
{
	return (vma->flags & MAP_ANONYMOUS) && (vma->flags & MAP_TYPE) == MAP_PRIVATE &&
	       !(vma->flags & (MAP_LOCKED | MAP_HUGETLB)) &&
	       !(vma->status & (VMA_STATUS_VDSO | VMA_STATUS_VVAR | VMA_STATUS_VSYSCALL | VMA_STATUS_GUARD));
}

/* ---- pagemap ---- */

/* CRIU 4.2 has the count in field 5; 4.1 and older in field 2, and may have "in parent" in place of flags. */
static int take_run(const struct image_frame *frame, const Criu__PagemapEntry *entry, struct image_pagemap *pagemap,
		    uint64_t *file_page, struct dp_err *err)
{
	if (entry->base.n_unknown_fields > 0)
		return image_frame_bad(
			frame, err,
			"a pagemap entry with fields this version does not know (compressed pages of CRIU 4.3 or newer?); "
			"dump without compression, or with CRIU 4.2");
	struct image_run run = {.pages = entry->has_nr_pages ? entry->nr_pages : entry->compat_nr_pages};
	if (entry->in_parent)
		run.flags = PAGEMAP_PARENT;
	else
		run.flags = entry->has_flags ? entry->flags : PAGEMAP_PRESENT;
	if (run.flags & ~(PAGEMAP_PARENT | PAGEMAP_LAZY | PAGEMAP_PRESENT))
		return image_frame_bad(frame, err, "a pagemap entry with flags this version does not know");
	if (!entry->has_vaddr || entry->vaddr & (PAGE_BYTES - 1) || entry->vaddr >= ADDRESS_END || run.pages == 0 ||
	    run.pages > (ADDRESS_END - entry->vaddr) >> PAGE_SHIFT)
		return image_frame_bad(frame, err, "a pagemap entry with an impossible address or length");
	run.pgno = entry->vaddr >> PAGE_SHIFT;
	const struct image_run *last = pagemap->count ? &pagemap->runs[pagemap->count - 1] : NULL;
	if (last && last->pgno + last->pages > run.pgno)
		return image_frame_bad(frame, err, "pagemap entries that overlap or are out of order");
	if (run.flags & PAGEMAP_PRESENT) {
		run.file_page = *file_page;
		*file_page += run.pages;
	}
	void *array = pagemap->runs;
	struct image_run *slot = grow(&array, &pagemap->count, sizeof(*slot));
	if (!slot)
		return dp_fail_errno(err, ENOMEM, "%s", frame->name);
	pagemap->runs = array;
	*slot = run;
	return 0;
}

static int take_head(struct image_frame *frame, struct image_pagemap *pagemap, struct dp_err *err)
{
	const unsigned char *record;
	size_t size;
	int rc = image_frame_next(frame, &record, &size, err);
	if (rc <= 0)
		return rc < 0 ? rc : image_frame_bad(frame, err, "holds no head record");
	Criu__PagemapHead *head = criu__pagemap_head__unpack(NULL, size, record);
	bool good = head && head->has_pages_id;
	bool known = head && head->base.n_unknown_fields == 0;
	if (good)
		pagemap->pages_id = head->pages_id;
	if (head)
		criu__pagemap_head__free_unpacked(head, NULL);
	if (!good)
		return image_frame_bad(frame, err, "a head record without the number of its pages image");
	if (!known)
		return image_frame_bad(frame, err,
				       "a head record with fields this version does not know (made by a newer CRIU?)");
	return 0;
}

int image_decode_pagemap(const void *bytes, size_t length, const char *name, struct image_pagemap *pagemap, struct dp_err *err)
{
	struct image_frame frame;
	const unsigned char *record;
	size_t size;
	uint64_t file_page = 0;
	*pagemap = (struct image_pagemap){0};
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_PAGEMAP, name, err);
	if (rc == 0)
		rc = take_head(&frame, pagemap, err);
	while (rc == 0 && (rc = image_frame_next(&frame, &record, &size, err)) > 0) {
		Criu__PagemapEntry *entry = criu__pagemap_entry__unpack(NULL, size, record);
		rc = entry ? take_run(&frame, entry, pagemap, &file_page, err) :
			     image_frame_bad(&frame, err, "a record that cannot be read");
		if (entry)
			criu__pagemap_entry__free_unpacked(entry, NULL);
	}
	if (rc < 0)
		image_pagemap_done(pagemap);
	return rc;
}

int images_read_pagemap(int images_fd, const char *name, struct image_pagemap *pagemap, struct dp_err *err)
{
	cleanup_free char *bytes = NULL;
	*pagemap = (struct image_pagemap){0};
	ssize_t length = image_load(images_fd, name, &bytes, err);
	if (length < 0)
		return (int)length;
	return image_decode_pagemap(bytes, (size_t)length, name, pagemap, err);
}

static unsigned char *put_u32(unsigned char *at, uint32_t value)
{
	memcpy(at, &value, sizeof(value));
	return at + sizeof(value);
}

int images_encode_pagemap(const struct image_pagemap *pagemap, void **bytes, size_t *length, struct dp_err *err)
{
	/* an entry is at most 4 varints with their tags: 11 + 2 + 6 + 11 bytes, and its length before it */
	size_t room = 64 + pagemap->count * 40;
	unsigned char *buffer = malloc(room);
	if (!buffer)
		return dp_fail_errno(err, ENOMEM, "pagemap image");
	unsigned char *at = put_u32(put_u32(buffer, IMAGE_MAGIC_COMMON), IMAGE_MAGIC_PAGEMAP);
	Criu__PagemapHead head = CRIU__PAGEMAP_HEAD__INIT;
	head.has_pages_id = true;
	head.pages_id = pagemap->pages_id;
	at = put_u32(at, (uint32_t)criu__pagemap_head__get_packed_size(&head));
	at += criu__pagemap_head__pack(&head, at);
	for (size_t i = 0; i < pagemap->count; i++) {
		Criu__PagemapEntry entry = CRIU__PAGEMAP_ENTRY__INIT;
		entry.has_vaddr = entry.has_compat_nr_pages = entry.has_flags = entry.has_nr_pages = true;
		entry.vaddr = pagemap->runs[i].pgno << PAGE_SHIFT;
		entry.flags = pagemap->runs[i].flags;
		entry.nr_pages = pagemap->runs[i].pages;
		at = put_u32(at, (uint32_t)criu__pagemap_entry__get_packed_size(&entry));
		at += criu__pagemap_entry__pack(&entry, at);
	}
	*bytes = buffer;
	*length = (size_t)(at - buffer);
	return 0;
}

int images_write_pagemap(int images_fd, uint32_t id, bool shared_memory, const struct image_pagemap *pagemap, struct dp_err *err)
{
	char name[64];
	cleanup_free void *bytes = NULL;
	size_t length;
	snprintf(name, sizeof(name), shared_memory ? "pagemap-shmem-%u.img" : "pagemap-%u.img", id);
	int rc = images_encode_pagemap(pagemap, &bytes, &length, err);
	if (rc < 0)
		return rc;
	cleanup_fd int fd = openat(images_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	rc = fd < 0 ? -errno : io_write_full(fd, bytes, length);
	return rc < 0 ? dp_fail_errno(err, -rc, "write image %s", name) : 0;
}

int images_each(int images_fd, int (*each)(void *context, int images_fd, const char *name, struct dp_err *err), void *context,
		struct dp_err *err)
{
	cleanup_fd int again = openat(images_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *directory = again < 0 ? NULL : fdopendir(again);
	if (!directory)
		return dp_fail_errno(err, errno, "list CRIU's images");
	again = -1; /* the directory's now */
	int rc = 0, more = 0;
	struct dirent *entry;
	while (rc == 0 && (more = io_next_entry(directory, &entry)) > 0)
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			rc = each(context, images_fd, entry->d_name, err);
	closedir(directory);
	return more < 0 ? dp_fail_errno(err, -more, "list CRIU's images") : rc;
}

void image_pagemap_done(struct image_pagemap *pagemap)
{
	free(pagemap->runs);
	*pagemap = (struct image_pagemap){0};
}

/* ---- namespaces ---- */

static void take_ids(const Criu__KobjIds *from, struct image_kobj_ids *ids)
{
	*ids = (struct image_kobj_ids){
		{from->pid_ns_id, from->net_ns_id, from->ipc_ns_id, from->uts_ns_id, from->mnt_ns_id, from->user_ns_id}};
}

/* The one record of an image that has one; *record points into the image. */
static int only_record(struct image_frame *frame, const unsigned char **record, size_t *size, struct dp_err *err)
{
	int rc = image_frame_next(frame, record, size, err);
	if (rc <= 0)
		return rc < 0 ? rc : image_frame_bad(frame, err, "holds no record");
	return 0;
}

int image_decode_inventory(const void *bytes, size_t length, struct image_kobj_ids *ids, struct dp_err *err)
{
	struct image_frame frame;
	const unsigned char *record;
	size_t size;
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_INVENTORY, "inventory.img", err);
	if (rc == 0)
		rc = only_record(&frame, &record, &size, err);
	if (rc < 0)
		return rc;
	Criu__Inventory *inventory = criu__inventory__unpack(NULL, size, record);
	if (!inventory)
		return image_frame_bad(&frame, err, "a record that cannot be read");
	if (inventory->img_version != 2)
		rc = image_frame_bad(&frame, err, "an images version other than 1.1");
	else if (!inventory->root_ids)
		rc = image_frame_bad(&frame, err, "does not name the namespaces of the host");
	else
		take_ids(inventory->root_ids, ids);
	criu__inventory__free_unpacked(inventory, NULL);
	return rc;
}

int image_decode_ids(const void *bytes, size_t length, const char *name, struct image_kobj_ids *ids, struct dp_err *err)
{
	struct image_frame frame;
	const unsigned char *record;
	size_t size;
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_IDS, name, err);
	if (rc == 0)
		rc = only_record(&frame, &record, &size, err);
	if (rc < 0)
		return rc;
	Criu__KobjIds *entry = criu__kobj_ids__unpack(NULL, size, record);
	if (!entry)
		return image_frame_bad(&frame, err, "a record that cannot be read");
	take_ids(entry, ids);
	criu__kobj_ids__free_unpacked(entry, NULL);
	return 0;
}

/* The inventory names the namespaces that criu itself ran in; the root task has its own where its id differs. */
int images_read_namespaces(int images_fd, const char *inventory_name, struct image_namespaces *own, struct dp_err *err)
{
	struct image_kobj_ids host, root;
	struct image_task *tasks;
	size_t count;
	int rc = images_read_pstree(images_fd, &tasks, &count, err);
	if (rc < 0)
		return rc;
	char name[64];
	snprintf(name, sizeof(name), "ids-%d.img", tasks[0].pid);
	free(tasks);
	cleanup_free char *inventory = NULL, *ids = NULL;
	ssize_t length = image_load(images_fd, inventory_name, &inventory, err);
	if (length < 0)
		return (int)length;
	rc = image_decode_inventory(inventory, (size_t)length, &host, err);
	if (rc < 0)
		return rc;
	length = image_load(images_fd, name, &ids, err);
	if (length < 0)
		return (int)length;
	rc = image_decode_ids(ids, (size_t)length, name, &root, err);
	if (rc < 0)
		return rc;
	bool differs[6];
	for (int i = 0; i < 6; i++)
		differs[i] = root.id[i] != 0 && root.id[i] != host.id[i];
	*own = (struct image_namespaces){.pid = differs[0], .net = differs[1], .ipc = differs[2], .uts = differs[3],
					 .mnt = differs[4], .user = differs[5]};
	return 0;
}

/* ---- stats ---- */

int image_decode_stats(const void *bytes, size_t length, uint64_t *frozen_ns, struct dp_err *err)
{
	struct image_frame frame;
	const unsigned char *record;
	size_t size;
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_STATS, "stats-dump", err);
	if (rc == 0)
		rc = only_record(&frame, &record, &size, err);
	if (rc < 0)
		return rc;
	Criu__StatsEntry *stats = criu__stats_entry__unpack(NULL, size, record);
	if (!stats || !stats->dump)
		rc = image_frame_bad(&frame, err, "a record that cannot be read");
	else
		*frozen_ns = ((uint64_t)stats->dump->freezing_time + stats->dump->frozen_time) * 1000;
	if (stats)
		criu__stats_entry__free_unpacked(stats, NULL);
	return rc;
}
