#include "restore/pager_process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/base.h"
#include "base/log.h"
#include "client/captive.h"
#include "instance/keeper.h"
#include "pager/pager.h"
#include "pager/recover.h"
#include "restore/pool_source.h"
#include "restore/processes.h"
#include "sys/uffd_abi.h"

int pager_listen(const struct instance *instance, const char *file, int type, struct dp_err *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	/* By way of a descriptor: ROOT may be longer than a socket's address can be. */
	cleanup_fd int directory_fd = open(instance->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (directory_fd < 0)
		return dp_fail_errno(err, errno, "open %s", instance->directory);
	snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", directory_fd, file);
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return dp_fail_errno(err, errno, "socket for %s", file);
	int on = 1;
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 16) ||
	    setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on))) {
		int code = errno;
		close(fd);
		return dp_fail_errno(err, code, "listen at %s/%s", instance->directory, file);
	}
	return fd;
}

static int serve(const struct restore_plan *plan, const struct pager_ends *ends, struct dp_err *err)
{
	const struct keeper *left = ends->inherited;
	struct pager_inheritance inherited = { left ? left->kept : NULL, left ? left->count : 0 };
	const struct instance *instance = &plan->instance;
	char images[PATH_MAX], stats[PATH_MAX], pools[RESTORE_POOLS][sizeof(instance->pool)];
	struct source *source = NULL;
	struct pager_config config = {
		.images_dir = instance_path(instance, "images", images, sizeof(images)),
		.listen_fd = ends->listen_fd,
		.control_fd = ends->control_fd,
		.keeper_fd = ends->keeper_fd,
		.init_pid = plan->options->container ? 0 : instance->init.pid, /* a container's own is not below its watcher */
		.init_pidfd = ends->init_pidfd,
		.guard_fd = ends->guard_fd,
		.inherited = left ? &inherited : NULL,
		.pool_uris = { instance->pool },
		.stats_path = instance_path(instance, "stats", stats, sizeof(stats)),
		.budget_bytes = instance->budget_bytes,
		.follow_cgroup = restore_follows_cgroup(plan->options->local_memory),
		.through = plan->options->through,
		.stall_timeout_ns = plan->options->stall_timeout_ns,
		.on_lost = plan->options->on_lost,
		.fill = plan->options->migrate,
		.fill_rate_bytes = plan->options->migrate_rate_bytes,
		.prefetch_policy = plan->options->prefetch_policy,
		.may_sleep = plan->options->may_sleep,
		.trace_path = getenv("DISTRI_PROC_FAULT_TRACE"),
		.gate_fd = plan->options->working_set ? working_set_open(instance) : -1,
	};
	for (size_t i = 0; i < plan->options->pool_count; i++)
		config.pool_uris[i] = endpoint_pool_text(&plan->options->pools[i], pools[i], sizeof(pools[i]));
	config.pool_uri_count = DP_MAX(plan->options->pool_count, 1u);
	if (left)
		captive_set_program(NULL); /* pools are the supervisor's to start (pool_starter.h) */
	int ret = left ? pool_source_take_over(plan, &source, err) : pool_source_create(plan, &config, &source, err);
	captive_set_program(NULL);
	config.source = source;
	if (!ret)
		enter_sandbox(instance);
	if (!ret)
		ret = pager_run(&config, err);
	free(config.order);
	pool_source_end(plan, source);
	return ret;
}

/* All but what the pager is given. */
static void close_others(const struct pager_ends *ends)
{
	size_t left = ends->inherited ? ends->inherited->count : 0, count = 0;
	cleanup_free int *keep = calloc(left + 5, sizeof(*keep));
	if (!keep)
		return;
	keep[count++] = ends->listen_fd;
	keep[count++] = ends->control_fd;
	keep[count++] = ends->keeper_fd;
	keep[count++] = ends->init_pidfd;
	keep[count++] = ends->guard_fd;
	for (size_t i = 0; i < left; i++)
		keep[count++] = ends->inherited->kept[i].fd;
	close_all_but(keep, count);
}

static void pager_main(const struct restore_plan *plan, const struct pager_ends *ends)
{
	struct dp_err err = { "" };
	char path[PATH_MAX];
	sigset_t none;
	prctl(PR_SET_NAME, "distri-pager");
	int log_fd = open(instance_path(&plan->instance, "pager.log", path, sizeof(path)),
			  O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log_fd >= 0)
		dup2(log_fd, 2);
	close_others(ends);
	log_setup(2, plan->options->verbose > 1 ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "pager");
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGCHLD, SIG_IGN); /* injectors (pager/warden.h) are waited for by nobody */
	int why_fd = fcntl(ends->keeper_fd, F_DUPFD_CLOEXEC, 3); /* pager_run takes its own */
	int ret = serve(plan, ends, &err);
	if (ret < 0) {
		log_error("%s", err.text);
		keeper_send_text(why_fd, err.text);
	}
	_exit(ret < 0 ? 1 : 0);
}

pid_t pager_start(const struct restore_plan *plan, const struct pager_ends *ends, struct dp_err *err)
{
	pid_t pid = fork();
	if (pid < 0)
		return dp_fail_errno(err, errno, "fork the pager");
	if (pid == 0)
		pager_main(plan, ends);
	return pid;
}
