/* capture: turns CRIU's page stream into a thin snapshot: lazy pages go to the pool as they come, eager ones and shared memory
 * to pages images in the workspace, and a page map of each says which is where. Zero pages that are lazy are nowhere.
 *
 * How it works: a sink of the page receiver. Pages leave by client_put straight from the receiver's buffer, many requests in
 * flight. For an instance with remote pages (`export`), those that CRIU could not see are inherited from the instance's space
 * in the pool, or copied where the snapshot goes to another pool.
 * Invariants: nothing of a task is lost: each of its pages is sent by CRIU, or exported by the pager, or zero (inherit.h);
 * capture_finish has had every acknowledgement of the pool before it returns. Thread rule: one thread. */
#ifndef DP_CHECKPOINT_CAPTURE_H
#define DP_CHECKPOINT_CAPTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "checkpoint/page_receiver.h"
#include "checkpoint/recall.h"
#include "client/client.h"
#include "pager/control.h"

struct capture;
struct hidden;
struct precopy;

struct capture_totals {
	uint64_t stored_pages;    /* sent by CRIU, put into the pool */
	uint64_t inherited_pages; /* shared with the instance's base */
	uint64_t eager_pages;     /* in the skeleton */
	uint64_t zero_pages;      /* elided */
	uint64_t maps;            /* tasks and segments */
};

/* A pool that the snapshot goes to: one, or all of a mirror. */
struct capture_target {
	struct client *client; /* borrowed; its asynchronous answers are taken by capture while it is at work */
	uint64_t draft;
	int pool;              /* which of the export's it is, so that its spaces can be inherited; -1: none of them */
};
#define CAPTURE_TARGETS CONTROL_POOLS

struct capture_config {
	struct capture_target target; /* the first; on_frozen tells its `pool`, and may add others */
	int images_fd; /* borrowed */
	/* Called when the tree is frozen, before its first page, once. May be NULL. Fills *export (borrowed by capture from then
	 * on, to its end), or leaves it NULL where there is no instance. */
	int (*on_frozen)(void *context, const struct control_export **export, struct capture_target targets[CAPTURE_TARGETS],
			 size_t *count, struct dp_err *err);
	const struct recall *recall_from; /* what the state before has, for tasks of which no export tells; or NULL */
	struct recall *recall_into;       /* gets what this one has; or NULL */
	/* NULL, or pages are sent by precopy into the same draft, and CRIU is kept from seeing those (precopy.h): both or none */
	struct precopy *precopy;
	const struct hidden *hidden;
	void (*on_progress)(void *context, const struct capture_totals *totals); /* after each chunk; may be NULL */
	void *context;
};

int capture_new(struct capture **capture, const struct capture_config *config, struct dp_err *err);
void capture_free(struct capture *capture);
/* For page_receiver_run; borrowed, lives as long as the capture. */
const struct page_sink *capture_sink(struct capture *capture);
/* After the stream and once CRIU has written all its images: takes what the export has, writes the page maps into images_fd,
 * waits for the pool. Errors of the pool (-ENOSPC, -ECONNRESET, ...) or of the images. */
int capture_finish(struct capture *capture, struct dp_err *err);
const struct capture_totals *capture_totals(const struct capture *capture);

#endif
