#include "restore/pool_starter.h"

#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "client/captive.h"
#include "restore/processes.h"

#define START_NS UINT64_C(10000000000)
#define LINGER_S 1 /* a pool leaves when nobody is connected for a while: until the pager is */

static size_t pool_count(const struct restore_options *options)
{
	return options->pool_count ? options->pool_count : 1;
}

static const struct endpoint *pool_at(const struct restore_options *options, size_t i)
{
	return options->pool_count ? &options->pools[i] : options->endpoint;
}

static bool is_captive(const struct endpoint *endpoint)
{
	return endpoint->kind == ENDPOINT_DIR || endpoint->kind == ENDPOINT_FILE;
}

bool pool_starter_is_needed(const struct restore_options *options)
{
	for (size_t i = 0; i < pool_count(options); i++)
		if (is_captive(pool_at(options, i)))
			return true;
	return false;
}

static void start_all(const struct restore_options *options) __attribute__((noreturn));
static void start_all(const struct restore_options *options)
{
	prctl(PR_SET_NAME, "dp-pool-start");
	close_all_but(NULL, 0); /* the tree's userfaultfds are the supervisor's */
	for (size_t i = 0; i < pool_count(options); i++) {
		struct dp_err err;
		struct stream *stream; /* stays open until this process ends */
		if (is_captive(pool_at(options, i)) &&
		    captive_connect(&stream, pool_at(options, i), false, clock_now_ns() + START_NS, &err))
			log_warn("start the pool again: %s", err.text);
	}
	sleep(LINGER_S);
	_exit(0);
}

bool pool_starter_run(const struct restore_options *options, int *starter)
{
	struct pollfd ended = { .fd = *starter, .events = POLLIN };
	if (!pool_starter_is_needed(options))
		return true;
	if (*starter >= 0 && poll(&ended, 1, 0) == 0)
		return false;
	dp_close_fd(starter);
	*starter = -1;
	struct clone_args clone = { .flags = CLONE_PARENT | CLONE_PIDFD, .pidfd = (uintptr_t)starter };
	long pid = syscall(SYS_clone3, &clone, sizeof(clone));
	if (pid == 0)
		start_all(options);
	if (pid < 0)
		log_warn("start the pool again: %s", strerror(errno));
	return true;
}
