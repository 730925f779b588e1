#include "checkpoint/capture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/base.h"
#include "checkpoint/hidden.h"
#include "checkpoint/inherit.h"
#include "checkpoint/pipeline.h"
#include "checkpoint/precopy.h"
#include "pager/source_spread.h"

#define INHERIT_BATCH 1024 /* ranges a request */
#define COPY_PAGES 256

/* One page map of the stream. */
struct captured {
	bool shared_memory;
	uint32_t id;
	uint64_t space[CAPTURE_TARGETS];    /* the drafts'; tasks only */
	const struct control_space *source; /* of the export; NULL where the task is no instance's */
	size_t copy_cursor;
	struct page_list sent;   /* all pages CRIU sent, zero ones too; only kept where there is a source */
	struct page_list kept;   /* those of them that were put into the pool; only kept where precopy has a part in it */
	struct page_list shared; /* sent, but what the pool has already */
	struct image_pagemap thin;
	uint64_t file_pages; /* eager pages written to its pages image */
};

struct capture {
	struct capture_config config;
	struct page_sink sink;
	struct capture_target targets[CAPTURE_TARGETS];
	struct pipeline pipelines[CAPTURE_TARGETS];
	size_t target_count;
	struct client *from[CONTROL_POOLS]; /* pools that pages are copied from; opened when needed */
	struct captured *maps;
	size_t map_count, map_room;
	size_t run_room; /* of the open map's runs */
	int pages_fd;    /* of the open map */
	bool frozen;     /* on_frozen was called */
	const struct control_export *export;
	struct capture_totals totals;
};

/* ---- page maps ---- */

static struct captured *open_map(struct capture *capture)
{
	return &capture->maps[capture->map_count - 1];
}

static struct captured *add_map(struct capture *capture)
{
	if (capture->map_count == capture->map_room) {
		size_t room = capture->map_room ? capture->map_room * 2 : 16;
		struct captured *wider = reallocarray(capture->maps, room, sizeof(*wider));
		if (!wider)
			return NULL;
		capture->maps = wider;
		capture->map_room = room;
	}
	struct captured *map = &capture->maps[capture->map_count++];
	*map = (struct captured){0};
	map->thin.pages_id = (uint32_t)capture->map_count;
	capture->run_room = 0;
	capture->totals.maps++;
	return map;
}

static int add_run(struct capture *capture, uint64_t pgno, uint64_t pages, uint32_t flags, struct dp_err *err)
{
	struct image_pagemap *thin = &open_map(capture)->thin;
	struct image_run *last = thin->count ? &thin->runs[thin->count - 1] : NULL;
	if (last && last->flags == flags && last->pgno + last->pages == pgno) {
		last->pages += pages;
		return 0;
	}
	if (thin->count == capture->run_room) {
		size_t room = capture->run_room ? capture->run_room * 2 : 64;
		struct image_run *wider = reallocarray(thin->runs, room, sizeof(*wider));
		if (!wider)
			return dp_fail_errno(err, ENOMEM, "page map");
		thin->runs = wider;
		capture->run_room = room;
	}
	thin->runs[thin->count++] = (struct image_run){.pgno = pgno, .pages = pages, .flags = flags};
	return 0;
}

static int fail_pool(struct dp_err *err, int rc)
{
	if (rc == -ENOSPC)
		return dp_fail(err, ENOSPC, "the pool is full: free some of it (distri-proc pool rm) or give it more room");
	return dp_fail_errno(err, -rc, "store pages in the pool");
}

static int drain(struct capture *capture, struct dp_err *err)
{
	int rc = 0;
	for (size_t i = 0; i < capture->target_count && rc == 0; i++)
		rc = pipeline_drain(&capture->pipelines[i]);
	return rc < 0 ? fail_pool(err, rc) : 0;
}

/* ---- the sink ---- */

static const struct control_space *find_source(const struct capture *capture, uint32_t vpid)
{
	for (size_t i = 0; capture->export && i < capture->export->count; i++)
		if (capture->export->spaces[i].vpid == (int)vpid)
			return &capture->export->spaces[i];
	return NULL;
}

static int open_pages_image(struct capture *capture, uint32_t pages_id, struct dp_err *err)
{
	char name[64];
	snprintf(name, sizeof(name), "pages-%u.img", pages_id);
	dp_close_fd(&capture->pages_fd);
	capture->pages_fd = openat(capture->config.images_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return capture->pages_fd < 0 ? dp_fail_errno(err, errno, "create image %s", name) : 0;
}

/* CRIU has frozen the whole tree before it sends the first page map. */
static int sink_open(void *context, bool shared_memory, uint32_t id, struct dp_err *err)
{
	struct capture *capture = context;
	int rc = 0;
	if (!capture->frozen) {
		capture->frozen = true;
		if (capture->config.on_frozen)
			rc = capture->config.on_frozen(capture->config.context, &capture->export, capture->targets,
						       &capture->target_count, err);
		if (rc == 0 && capture->config.precopy)
			rc = precopy_frozen(capture->config.precopy, err);
		if (rc < 0)
			return rc;
		for (size_t i = 0; i < capture->target_count; i++)
			capture->pipelines[i].client = capture->targets[i].client;
	}
	struct captured *map = add_map(capture);
	if (!map)
		return dp_fail_errno(err, ENOMEM, "page map");
	map->shared_memory = shared_memory;
	map->id = id;
	rc = open_pages_image(capture, map->thin.pages_id, err);
	if (rc < 0 || shared_memory)
		return rc;
	map->source = find_source(capture, id);
	if (!map->source)
		map->source = recall_space(capture->config.recall_from, (int)id);
	rc = drain(capture, err); /* the client's blocking calls want no answers under way */
	if (rc == 0 && capture->config.precopy)
		return precopy_space(capture->config.precopy, id, &map->space[0], err);
	for (size_t i = 0; i < capture->target_count && rc == 0; i++)
		rc = client_snapshot_space(capture->targets[i].client, capture->targets[i].draft, id, &map->space[i], err);
	return rc;
}

/* Has the target what the instance has of this page? */
static bool is_there(const struct capture *capture, const struct capture_target *target, uint64_t pgno)
{
	const struct control_export *export = capture->export;
	if (!export || target->pool < 0)
		return false;
	return !export->spread || spread_place(pgno, (unsigned)export->pool_count) == (unsigned)target->pool;
}

/* What becomes of one lazy page. */
enum fate { FATE_STORE, FATE_ZERO, FATE_SHARE };

static enum fate fate_of(const struct capture *capture, struct captured *map, uint64_t pgno, const void *page)
{
	if (page_is_zero(page))
		return FATE_ZERO;
	bool may_share = map->source;
	for (size_t i = 0; may_share && !map->source->hints_only && i < capture->target_count; i++)
		may_share = is_there(capture, &capture->targets[i], pgno);
	const struct control_copy *copy = may_share ? inherit_find_copy(map->source, pgno, &map->copy_cursor) : NULL;
	return copy && copy->hash == page_hash(page) ? FATE_SHARE : FATE_STORE;
}

static int take_lazy(struct capture *capture, struct captured *map, uint64_t pgno, uint64_t pages, const char *data,
		     struct dp_err *err)
{
	struct page_range ranges[PAGE_CHUNK_PAGES];
	struct iovec vectors[PAGE_CHUNK_PAGES];
	size_t count = 0;
	int rc = 0;
	for (uint64_t i = 0; i < pages && rc == 0; i++) {
		const char *page = data + i * PAGE_BYTES;
		enum fate fate = fate_of(capture, map, pgno + i, page);
		if (fate != FATE_ZERO && capture->config.recall_into)
			rc = recall_add(capture->config.recall_into, (int)map->id, pgno + i, page_hash(page));
		if (rc < 0)
			break;
		if (fate == FATE_ZERO) {
			capture->totals.zero_pages++;
		} else if (fate == FATE_SHARE) {
			rc = page_list_add(&map->shared, pgno + i, 1);
		} else if (count > 0 && ranges[count - 1].pgno + ranges[count - 1].pages == pgno + i) {
			ranges[count - 1].pages++;
			vectors[count - 1].iov_len += PAGE_BYTES;
		} else {
			ranges[count] = (struct page_range){.pgno = pgno + i, .pages = 1};
			vectors[count++] = (struct iovec){.iov_base = (void *)(uintptr_t)page, .iov_len = PAGE_BYTES};
		}
	}
	if (rc < 0)
		return dp_fail_errno(err, -rc, "page map");
	for (size_t i = 0; i < count; i++) {
		rc = add_run(capture, ranges[i].pgno, ranges[i].pages, PAGEMAP_LAZY, err);
		if (rc == 0 && capture->config.precopy && page_list_add(&map->kept, ranges[i].pgno, ranges[i].pages))
			rc = dp_fail_errno(err, ENOMEM, "page map");
		if (rc < 0)
			return rc;
		capture->totals.stored_pages += ranges[i].pages;
	}
	for (size_t i = 0; i < capture->target_count && count > 0 && rc == 0; i++)
		rc = pipeline_put(&capture->pipelines[i], map->space[i], ranges, count, vectors, count);
	return rc < 0 ? fail_pool(err, rc) : 0;
}

static int take_eager(struct capture *capture, struct captured *map, uint64_t pgno, uint64_t pages, const void *data,
		      struct dp_err *err)
{
	int rc = io_write_full(capture->pages_fd, data, pages * PAGE_BYTES);
	if (rc < 0)
		return dp_fail_errno(err, -rc, "write eager pages (shared memory and such) to the temporary file system");
	map->file_pages += pages;
	capture->totals.eager_pages += pages;
	return add_run(capture, pgno, pages, PAGEMAP_PRESENT, err);
}

static int sink_pages(void *context, bool lazy, uint64_t pgno, uint64_t pages, const void *data, struct dp_err *err)
{
	struct capture *capture = context;
	struct captured *map = open_map(capture);
	int rc = map->source && !map->source->hints_only ? page_list_add(&map->sent, pgno, pages) : 0;
	if (rc < 0)
		return dp_fail_errno(err, -rc, "page map");
	/* shared memory is restored by CRIU itself, whatever its pages are marked */
	if (lazy && !map->shared_memory)
		rc = take_lazy(capture, map, pgno, pages, data, err);
	else
		rc = take_eager(capture, map, pgno, pages, data, err);
	if (rc == 0 && capture->config.on_progress)
		capture->config.on_progress(capture->config.context, &capture->totals);
	return rc;
}

/* ---- pages that only the pool has ---- */

static int inherit_ranges(struct capture *capture, const struct captured *map, size_t to, const struct page_list *pages,
			  struct dp_err *err)
{
	const struct capture_target *target = &capture->targets[to];
	uint64_t source = map->source->hints_only ? map->source->pool_space
						  : control_space_in(capture->export, map->source, (size_t)target->pool);
	for (size_t at = 0; at < pages->count; at += INHERIT_BATCH) {
		size_t count = DP_MIN(pages->count - at, (size_t)INHERIT_BATCH);
		int rc = client_snapshot_inherit(target->client, map->space[to], source, pages->ranges + at, count, err);
		if (rc < 0)
			return rc;
	}
	return 0;
}

struct copying {
	struct pipeline *to;
	uint64_t space;
	int error;
};

static void copy_pages(void *context, struct page_range range, const void *data)
{
	struct copying *copying = context;
	if (!data || copying->error)
		return; /* zero here is zero there */
	struct iovec vector = {.iov_base = (void *)(uintptr_t)data, .iov_len = range.pages * PAGE_BYTES};
	copying->error = pipeline_put(copying->to, copying->space, &range, 1, &vector, 1);
}

/* A pool of the instance that is to be read. */
static int open_source_pool(struct capture *capture, size_t pool, struct dp_err *err)
{
	struct endpoint endpoint;
	if (capture->from[pool])
		return 0;
	int rc = endpoint_parse(&endpoint, capture->export->pools[pool].uri, err);
	return rc < 0 ? rc : client_open(&capture->from[pool], &endpoint, 0, err);
}

/* Pages that the target has not got: through this process. */
static int copy_range(struct capture *capture, const struct captured *map, size_t to, size_t pool, struct page_range whole,
		      struct dp_err *err)
{
	struct copying copying = {.to = &capture->pipelines[to], .space = map->space[to]};
	int rc = open_source_pool(capture, pool, err);
	if (rc < 0)
		return rc;
	struct pipeline source = {.client = capture->from[pool], .on_pages = copy_pages, .context = &copying};
	const char *uri = capture->export->pools[pool].uri;
	for (uint64_t done = 0; done < whole.pages;) {
		struct page_range range = {.pgno = whole.pgno + done, .pages = DP_MIN(whole.pages - done, (uint64_t)COPY_PAGES)};
		rc = pipeline_get(&source, control_space_in(capture->export, map->source, pool), &range, 1);
		if (rc == -EBADMSG)
			return dp_fail(err, EBADMSG,
				       "pages are damaged in %s: repair that (distri-proc pool scrub --repair-from), "
				       "or store into it, where they stay known as damaged",
				       uri);
		if (rc < 0)
			return dp_fail_errno(err, -rc, "read remote pages from %s", uri);
		if (copying.error)
			return fail_pool(err, copying.error);
		done += range.pages;
	}
	return 0;
}

/* Which of the instance's pools has the page, and up to where; -ENOTCONN where none is whole. */
static int place_of(const struct control_export *export, uint64_t pgno, uint64_t *end)
{
	if (export->spread) {
		*end = (pgno / SPREAD_CHUNK_PAGES + 1) * SPREAD_CHUNK_PAGES;
		return (int)spread_place(pgno, (unsigned)export->pool_count);
	}
	*end = UINT64_MAX;
	for (size_t i = 0; i < export->pool_count; i++)
		if (export->pools[i].whole)
			return (int)i;
	return -ENOTCONN;
}

/* Pages that are only in the instance's pools: inherited where the target is the one that has them, else copied. */
static int fetch_remote(struct capture *capture, const struct captured *map, size_t to, const struct page_list *pages,
			struct dp_err *err)
{
	const struct capture_target *target = &capture->targets[to];
	struct page_list here = {0};
	int rc = 0;
	for (size_t i = 0; i < pages->count && rc == 0; i++) {
		uint64_t at = pages->ranges[i].pgno, end = at + pages->ranges[i].pages, stop;
		for (; at < end && rc == 0; at = stop) {
			int place = place_of(capture->export, at, &stop);
			stop = DP_MIN(stop, end);
			if (is_there(capture, target, at))
				rc = page_list_add(&here, at, stop - at) < 0 ? dp_fail_errno(err, ENOMEM, "page map") : 0;
			else if (place < 0)
				rc = dp_fail(
					err, ENOTCONN,
					"no pool of the instance has all its pages now: try again when `stats` shows that all are there");
			else
				rc = copy_range(capture, map, to, (size_t)place, (struct page_range){at, stop - at}, err);
		}
	}
	if (rc == 0 && (rc = pipeline_drain(&capture->pipelines[to])) < 0)
		fail_pool(err, rc);
	if (rc == 0 && here.count)
		rc = inherit_ranges(capture, map, to, &here, err);
	if (to == 0) {
		capture->totals.inherited_pages += here.pages;
		capture->totals.stored_pages += pages->pages - here.pages;
	}
	page_list_done(&here);
	return rc;
}

static int read_areas(const struct capture *capture, const struct captured *map, const struct page_list *missing,
		      struct page_list *lazy, struct dp_err *err)
{
	struct image_vma *vmas;
	size_t count;
	uint64_t at = 0;
	int rc = images_read_mm(capture->config.images_fd, (int)map->id, &vmas, &count, err);
	if (rc < 0)
		return rc;
	rc = inherit_within_areas(missing, vmas, count, lazy, &at);
	free(vmas);
	if (rc == -ENOTSUP)
		return dp_fail(err, ENOTSUP,
			       "task %u has remote pages in locked memory (at 0x%llx), which CRIU would lose: unlock it first",
			       map->id, (unsigned long long)at << PAGE_SHIFT);
	return rc < 0 ? dp_fail_errno(err, -rc, "page map") : 0;
}

static int take_remote(struct capture *capture, struct captured *map, struct dp_err *err)
{
	struct page_list missing = {0}, lazy = {0};
	int rc = map->source->hints_only ? 0 : inherit_missing(map->source, &map->sent, &missing);
	if (rc < 0)
		dp_fail_errno(err, -rc, "page map");
	if (rc == 0)
		rc = read_areas(capture, map, &missing, &lazy, err);
	for (size_t to = 0; to < capture->target_count && rc == 0; to++) {
		if (map->shared.count)
			rc = inherit_ranges(capture, map, to, &map->shared, err);
		if (rc == 0 && lazy.count)
			rc = fetch_remote(capture, map, to, &lazy, err);
		if (rc == 0 && (rc = pipeline_drain(&capture->pipelines[to])) < 0)
			fail_pool(err, rc);
	}
	if (rc == 0 && (inherit_merge_runs(&map->thin, &map->shared) < 0 || inherit_merge_runs(&map->thin, &lazy) < 0))
		rc = dp_fail_errno(err, ENOMEM, "page map");
	capture->totals.inherited_pages += map->shared.pages;
	page_list_done(&missing);
	page_list_done(&lazy);
	return rc;
}

/* ---- pages that went ahead ---- */

static int take_ahead(struct capture *capture, struct captured *map, struct dp_err *err)
{
	struct page_list hidden = {0}, lazy = {0};
	int rc = hidden_pages(capture->config.hidden, map->id, capture->config.images_fd, &hidden, err);
	if (rc == 0)
		rc = precopy_finish(capture->config.precopy, map->id, &hidden, &map->kept, &lazy, NULL, err);
	if (rc == 0 && inherit_merge_runs(&map->thin, &lazy) < 0)
		rc = dp_fail_errno(err, ENOMEM, "page map");
	capture->totals.stored_pages += lazy.pages;
	page_list_done(&hidden);
	page_list_done(&lazy);
	return rc;
}

static int take_all_ahead(struct capture *capture, struct dp_err *err)
{
	int rc = 0;
	for (size_t i = 0; i < capture->map_count && rc == 0; i++)
		if (!capture->maps[i].shared_memory)
			rc = take_ahead(capture, &capture->maps[i], err);
	return rc < 0 ? rc : precopy_finish_all(capture->config.precopy, err);
}

/* ---- the end ---- */

int capture_finish(struct capture *capture, struct dp_err *err)
{
	dp_close_fd(&capture->pages_fd);
	capture->pages_fd = -1;
	int rc = drain(capture, err);
	if (rc == 0 && capture->config.precopy)
		rc = take_all_ahead(capture, err);
	for (size_t i = 0; i < capture->map_count && rc == 0; i++) {
		if (capture->maps[i].source)
			rc = take_remote(capture, &capture->maps[i], err);
		if (rc == 0)
			rc = images_write_pagemap(capture->config.images_fd, capture->maps[i].id, capture->maps[i].shared_memory,
						  &capture->maps[i].thin, err);
	}
	return rc < 0 ? rc : drain(capture, err);
}

int capture_new(struct capture **capture, const struct capture_config *config, struct dp_err *err)
{
	struct capture *new = calloc(1, sizeof(*new));
	if (!new)
		return dp_fail_errno(err, ENOMEM, "checkpoint");
	new->config = *config;
	new->pages_fd = -1;
	new->targets[0] = config->target;
	new->pipelines[0].client = config->target.client;
	new->target_count = 1;
	new->sink = (struct page_sink){.context = new, .open = sink_open, .pages = sink_pages};
	*capture = new;
	return 0;
}

void capture_free(struct capture *capture)
{
	if (!capture)
		return;
	for (size_t i = 0; i < capture->map_count; i++) {
		page_list_done(&capture->maps[i].sent);
		page_list_done(&capture->maps[i].shared);
		page_list_done(&capture->maps[i].kept);
		image_pagemap_done(&capture->maps[i].thin);
	}
	for (size_t i = 0; i < CONTROL_POOLS; i++)
		client_close(capture->from[i]);
	free(capture->maps);
	dp_close_fd(&capture->pages_fd);
	free(capture);
}

const struct page_sink *capture_sink(struct capture *capture)
{
	return &capture->sink;
}

const struct capture_totals *capture_totals(const struct capture *capture)
{
	return &capture->totals;
}
