#include "checkpoint/pipeline.h"

#include <errno.h>
#include <poll.h>

#include "base/base.h"

static void take_pages(void *context, uint64_t cookie, struct page_range range, const void *data, bool last)
{
	struct pipeline *pipeline = context;
	if (pipeline->on_pages)
		pipeline->on_pages(pipeline->context, range, data);
	if (last)
		pipeline->outstanding--;
}

static void take_done(void *context, uint64_t cookie, int result)
{
	struct pipeline *pipeline = context;
	pipeline->outstanding--;
	if (result < 0 && pipeline->error == 0)
		pipeline->error = result;
}

static void take_damaged(void *context, uint64_t cookie, struct page_range range, bool last)
{
	struct pipeline *pipeline = context;
	if (pipeline->error == 0)
		pipeline->error = -EBADMSG;
	if (last)
		pipeline->outstanding--;
}

static int receive(struct pipeline *pipeline)
{
	const struct client_handler handler = {.context = pipeline, .on_pages = take_pages, .on_done = take_done,
					      .on_damaged = take_damaged};
	int rc = client_receive(pipeline->client, &handler);
	if (rc < 0 && pipeline->error == 0)
		pipeline->error = rc;
	return pipeline->error;
}

/* Until something can be received or, where something waits to be sent, be sent. */
static int wait_and_receive(struct pipeline *pipeline)
{
	struct pollfd poll_fd = {.fd = client_fd(pipeline->client), .events = POLLIN};
	if (client_wants_write(pipeline->client))
		poll_fd.events |= POLLOUT;
	if (poll(&poll_fd, 1, -1) < 0 && errno != EINTR)
		return pipeline->error = pipeline->error ? pipeline->error : -errno;
	return receive(pipeline);
}

/* A put, or without data a drop. */
static int send_change(struct pipeline *pipeline, uint64_t space, const struct page_range *ranges, size_t count,
		       const struct iovec *data, size_t data_count)
{
	int rc = receive(pipeline); /* what has come, so that answers never fill the pool's side */
	while (rc == 0) {
		rc = data ? client_put(pipeline->client, space, 0, ranges, count, data, data_count, 0)
			  : client_drop(pipeline->client, space, 0, ranges, count, 0);
		if (rc == 0) {
			pipeline->outstanding++;
			return 0;
		}
		if (rc == -EAGAIN)
			rc = wait_and_receive(pipeline);
	}
	if (pipeline->error == 0)
		pipeline->error = rc;
	return rc;
}

int pipeline_put(struct pipeline *pipeline, uint64_t space, const struct page_range *ranges, size_t count,
		 const struct iovec *data, size_t data_count)
{
	return send_change(pipeline, space, ranges, count, data, data_count);
}

int pipeline_drop(struct pipeline *pipeline, uint64_t space, const struct page_range *ranges, size_t count)
{
	return send_change(pipeline, space, ranges, count, NULL, 0);
}

int pipeline_get(struct pipeline *pipeline, uint64_t space, const struct page_range *ranges, size_t count)
{
	int rc = pipeline->error;
	while (rc == 0) {
		rc = client_get(pipeline->client, CLASS_PREFETCH, space, ranges, count, 0);
		if (rc == 0) {
			pipeline->outstanding++;
			return pipeline_drain(pipeline);
		}
		if (rc == -EAGAIN)
			rc = wait_and_receive(pipeline);
	}
	return rc;
}

int pipeline_drain(struct pipeline *pipeline)
{
	int rc = pipeline->error;
	while (rc == 0 && pipeline->outstanding > 0)
		rc = wait_and_receive(pipeline);
	return rc;
}
