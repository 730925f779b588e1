/* pipeline: puts and gets of one client, waited for in bulk. The client's page calls never block; this room has nothing else
 * to do meanwhile, so it blocks. The first error stays: every later call returns it. Thread rule: the client's. */
#ifndef DP_CHECKPOINT_PIPELINE_H
#define DP_CHECKPOINT_PIPELINE_H

#include "client/client.h"

struct pipeline {
	struct client *client;
	uint64_t outstanding; /* requests without an answer */
	int error;            /* the first, or 0 */
	/* gets: */
	void (*on_pages)(void *context, struct page_range range, const void *data);
	void *context;
};

/* Queues, waiting for room; `data` is borrowed for the call. */
int pipeline_put(struct pipeline *pipeline, uint64_t space, const struct page_range *ranges, size_t count,
		 const struct iovec *data, size_t data_count);
/* At most 256 ranges. */
int pipeline_drop(struct pipeline *pipeline, uint64_t space, const struct page_range *ranges, size_t count);
/* Asks and waits for all: on_pages has been called for every page when it returns 0. */
int pipeline_get(struct pipeline *pipeline, uint64_t space, const struct page_range *ranges, size_t count);
/* Waits until every request has its answer. */
int pipeline_drain(struct pipeline *pipeline);

#endif
