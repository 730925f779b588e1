#include "pager/source.h"

#include <errno.h>
#include <poll.h>

#include "base/base.h"

#define LOOK_MS 10 /* a source that reconnects has work of its own now and then */

int source_resume_wait(const struct source_resume *resume, int fd, short events)
{
	struct pollfd polled[] = { { .fd = fd, .events = events }, { .fd = resume->ended_fd, .events = POLLIN } };
	if (clock_now_ns() - resume->began_ns > resume->patience_ns)
		return -ETIMEDOUT;
	poll(polled, ARRAY_LENGTH(polled), LOOK_MS);
	return polled[1].revents ? -ESRCH : 0;
}
