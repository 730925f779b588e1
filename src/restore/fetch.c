/* fetch: the skeleton comes to this host and is checked before anything starts (R2). */
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include "base/base.h"
#include "client/client.h"
#include "pager/pager.h"
#include "restore/container.h"
#include "restore/plan.h"

#define SKELETON_LIMIT_BYTES (1ull << 30) /* eager pages are part of it; anything larger is no skeleton */

static int check_architecture(const char *meta_json, struct dp_err *err)
{
	struct utsname host;
	json_object *meta = meta_json ? json_tokener_parse(meta_json) : NULL, *value = NULL;
	int ret = 0;
	if (json_object_is_type(meta, json_type_object) && json_object_object_get_ex(meta, "arch", &value) && !uname(&host) &&
	    strcmp(json_object_get_string(value), host.machine))
		ret = dp_fail(err, ENOEXEC, "snapshot was taken on %s, this host is %s: restore it on a host of its kind",
			      json_object_get_string(value), host.machine);
	json_object_put(meta);
	return ret;
}

static bool file_name_is_safe(const char *name)
{
	return *name && *name != '.' && !strchr(name, '/');
}

/* Page counts of what is eager: pages-N.img hold it, raw. */
static bool is_pages_image(const char *name)
{
	return !strncmp(name, "pages-", 6);
}

struct fetch {
	const struct snapshot_info *info;
	int images_fd;
	bool gated;
};

static int write_image(void *context, size_t index, const void *content, uint64_t bytes, struct dp_err *err)
{
	const struct fetch *fetch = context;
	const char *name = fetch->info->files[index].name;
	if (fetch->gated && !strcmp(name, GATED_IMAGE))
		name = GATE_IMAGE;
	cleanup_fd int fd = openat(fetch->images_fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int ret = fd < 0 ? -errno : io_write_full(fd, content, bytes);
	return ret ? dp_fail_errno(err, -ret, "write image %s", name) : 0;
}

static int fetch_files(struct client *client, const struct snapshot_info *info, int images_fd, bool gated, struct dp_err *err)
{
	struct fetch fetch = { info, images_fd, gated };
	uint64_t total = 0;
	for (size_t i = 0; i < info->file_count; i++) {
		const struct snapshot_file *file = &info->files[i];
		if (!file_name_is_safe(file->name) || file->bytes > SKELETON_LIMIT_BYTES - total)
			return dp_fail(err, EBADMSG, "snapshot holds a file `%s` of %llu bytes that belongs in no skeleton",
				       file->name, (unsigned long long)file->bytes);
		total += file->bytes;
	}
	return client_files_get(client, info->id, info->files, info->file_count, write_image, &fetch, err);
}

static uint64_t count_pages(const struct snapshot_info *info)
{
	uint64_t pages = 0;
	for (size_t i = 0; i < info->space_count; i++)
		pages += info->spaces[i].pages;
	for (size_t i = 0; i < info->file_count; i++)
		if (is_pages_image(info->files[i].name))
			pages += info->files[i].bytes / PAGE_BYTES;
	return pages;
}

bool restore_follows_cgroup(const char *local_memory)
{
	return local_memory && !strcmp(local_memory, "cgroup");
}

/* 50 % of the pages, or a size: the budget, refused where no tree of this many tasks could work in it. */
int restore_budget(const char *local_memory, uint64_t snapshot_pages, size_t tasks, uint64_t *budget_bytes, struct dp_err *err)
{
	char least_text[32], given_text[32];
	*budget_bytes = 0;
	if (!local_memory)
		return 0;
	uint64_t least = pager_min_budget_bytes((unsigned)tasks);
	if (restore_follows_cgroup(local_memory)) { /* until the pager has seen the group */
		*budget_bytes = DP_MAX(snapshot_pages * PAGE_BYTES, least);
		return 0;
	}
	char *end;
	errno = 0;
	double percent = strtod(local_memory, &end);
	if (end != local_memory && !errno && !strcmp(end, "%")) {
		if (!(percent > 0 && percent <= 100))
			return dp_fail(err, EINVAL, "--local-memory %s: a percentage is above 0 and at most 100", local_memory);
		*budget_bytes = (uint64_t)((double)snapshot_pages * percent / 100) * PAGE_BYTES;
	} else if (parse_size(local_memory, budget_bytes) || *budget_bytes == 0) {
		return dp_fail(err, EINVAL, "--local-memory %s: give a share or a size, such as 50%% or 512M, or cgroup",
			       local_memory);
	}
	if (*budget_bytes < least)
		return dp_fail(err, EINVAL, "--local-memory %s is %s, less than %zu process%s can work in: give at least %s",
			       local_memory, format_size(*budget_bytes, given_text, sizeof(given_text)), tasks,
			       tasks == 1 ? "" : "es", format_size(least, least_text, sizeof(least_text)));
	return 0;
}

/* "50%" remote is 50 % local; of "512M" the rest of the snapshot. */
static int local_of_remote(const char *remote_memory, uint64_t snapshot_pages, char *local, size_t size, struct dp_err *err)
{
	uint64_t remote_bytes, all_bytes = snapshot_pages * PAGE_BYTES;
	char *end;
	double percent = strtod(remote_memory, &end);
	if (end != remote_memory && !strcmp(end, "%") && percent >= 0 && percent < 100) {
		snprintf(local, size, "%g%%", 100 - percent);
		return 0;
	}
	if (parse_size(remote_memory, &remote_bytes))
		return dp_fail(err, EINVAL, "remote memory %s: give a share below 100%% or a size, such as 50%% or 512M",
			       remote_memory);
	if (remote_bytes >= all_bytes)
		return dp_fail(err, EINVAL, "remote memory %s is all that the snapshot has: give less, or a share such as 50%%",
			       remote_memory);
	snprintf(local, size, "%llu", (unsigned long long)(all_bytes - remote_bytes));
	return 0;
}

/* With a mount namespace of its own the snapshot brings its own root: this host's files are not what it will see. */
static int check_files(int images_fd, const struct image_namespaces *own, struct dp_err *err)
{
	struct image_file *files;
	size_t count;
	cleanup_free char *report = NULL;
	if (own->mnt)
		return 0;
	int ret = images_read_files(images_fd, &files, &count, err);
	if (ret)
		return ret;
	int different = images_check_files(AT_FDCWD, files, count, &report);
	image_files_free(files, count);
	if (different < 0)
		return dp_fail_errno(err, -different, "check the files of the snapshot");
	if (different > 0) {
		size_t length = strlen(report);
		if (length && report[length - 1] == '\n')
			report[length - 1] = 0;
		return dp_fail(err, ENOTUNIQ, "this host's files are not those of the snapshot:\n%s", report);
	}
	return 0;
}

static pid_t read_pid_max(void)
{
	cleanup_free char *text = NULL;
	if (io_read_file("/proc/sys/kernel/pid_max", &text, 64) < 0)
		return 32768;
	return (pid_t)strtol(text, NULL, 10);
}

static int place_pids(struct restore_plan *plan, int images_fd, const struct image_task *tasks, size_t count, struct dp_err *err)
{
	cleanup_free pid_t *pids = NULL;
	size_t pid_count;
	if (plan->nested)
		return 0; /* CRIU's namespace, CRIU's numbers */
	int ret = plan_read_pids(images_fd, tasks, count, &pids, &pid_count, err);
	if (ret)
		return ret;
	pid_t pid_max = read_pid_max();
	if (pid_count && pids[pid_count - 1] >= pid_max)
		return dp_fail(err, ERANGE,
			       "snapshot has a pid %d, this host ends at %d: raise it with `sysctl kernel.pid_max=4194304`",
			       (int)pids[pid_count - 1], (int)pid_max);
	if (!plan->own_pid_namespace)
		return plan_refuse_used_pids(pids, pid_count, err);
	if (pid_count && pids[0] == 1)
		return dp_fail(err, EEXIST,
			       "snapshot has a pid 1 without a PID namespace of its own: nothing can be put in its place");
	plan->highest_pid = pid_count ? pids[pid_count - 1] : 0;
	if (plan->early && plan_gap_is_free(pids, pid_count, plan->last_pid, CRIU_PID_ROOM))
		return 0;
	plan->last_pid = plan_pid_gap(pids, pid_count, pid_max, CRIU_PID_ROOM);
	if (plan->last_pid == 0)
		return dp_fail(err, ENOSPC, "snapshot leaves no gap of %d pids below %d for CRIU: raise it with "
			       "`sysctl kernel.pid_max=4194304`", CRIU_PID_ROOM, (int)pid_max);
	return 0;
}

/* All that is decided from the images alone. */
static int read_skeleton(struct restore_plan *plan, int images_fd, struct dp_err *err)
{
	const struct restore_options *options = plan->options;
	struct image_namespaces own;
	cleanup_free struct image_task *tasks = NULL;
	size_t count;
	int ret = images_read_pstree(images_fd, &tasks, &count, err);
	if (!ret)
		ret = images_read_namespaces(images_fd, plan->early ? GATE_IMAGE : GATED_IMAGE, &own, err);
	if (ret)
		return ret;
	if (count == 0)
		return dp_fail(err, EBADMSG, "snapshot has no process in it");
	plan->nested = own.pid;
	plan->own_mounts = own.mnt;
	plan->own_pid_namespace = !own.pid && !options->host_pid_namespace;
	plan->instance.own_pid_namespace = plan->own_pid_namespace;
	char local[32];
	const char *local_memory = options->local_memory;
	if (options->remote_memory) {
		local_memory = local;
		ret = local_of_remote(options->remote_memory, plan->instance.snapshot_pages, local, sizeof(local), err);
	}
	if (!ret)
		ret = restore_budget(local_memory, plan->instance.snapshot_pages, count, &plan->instance.budget_bytes, err);
	if (!ret)
		ret = place_pids(plan, images_fd, tasks, count, err);
	if (!ret)
		ret = check_files(images_fd, &own, err);
	return ret;
}

static int fetch_and_check(struct restore_plan *plan, struct client *client, const struct snapshot_info *info,
			   struct restore_times *times, struct dp_err *err)
{
	char path[PATH_MAX];
	int ret = check_architecture(info->meta_json, err);
	if (ret)
		return ret;
	snprintf(plan->instance.snapshot, sizeof(plan->instance.snapshot), "%s", info->name);
	plan->instance.snapshot_pages = count_pages(info);
	cleanup_fd int images_fd = open(instance_path(&plan->instance, "images", path, sizeof(path)), O_DIRECTORY | O_CLOEXEC);
	if (images_fd < 0)
		return dp_fail_errno(err, errno, "open %s", path);
	ret = fetch_files(client, info, images_fd, plan->early, err);
	times->fetched_ns = clock_now_ns();
	return ret ? ret : read_skeleton(plan, images_fd, err);
}

int plan_begin(const struct restore_options *options, struct restore_plan *plan, struct dp_err *err)
{
	*plan = (struct restore_plan){ .options = options, .stdio = { -1, -1, -1 }, .report_fd = -1 };
	if (!options->endpoint->name[0])
		return dp_fail(err, EINVAL, "no snapshot named: write POOL/REPO:TAG");
	bool named = options->name && options->name_is_free;
	int ret = instance_create_dir(options->root, options->endpoint->name, named ? NULL : options->name, &plan->instance, err);
	if (ret)
		return ret;
	if (named)
		snprintf(plan->instance.name, sizeof(plan->instance.name), "%s", options->name);
	if (options->container)
		snprintf(plan->instance.container, sizeof(plan->instance.container), "%s", options->container->id);
	if (options->group)
		snprintf(plan->instance.group, sizeof(plan->instance.group), "%s", options->group);
	endpoint_pool_text(options->endpoint, plan->instance.pool, sizeof(plan->instance.pool));
	plan->own_pid_namespace = plan->instance.own_pid_namespace = !options->host_pid_namespace;
	/* With the host's pids, a CRIU that is here before they are known may have one of them; and a terminal cannot be given
	 * twice. */
	plan->early = !options->host_pid_namespace && !options->shell_job;
	plan->last_pid = read_pid_max() - CRIU_PID_ROOM - 2;
	return 0;
}

bool plan_was_guessed(const struct restore_plan *guess, const struct restore_plan *plan)
{
	return guess->early && guess->own_pid_namespace == plan->own_pid_namespace && guess->own_mounts == plan->own_mounts &&
	       guess->last_pid == plan->last_pid;
}

int plan_make(struct restore_plan *plan, struct restore_times *times, struct dp_err *err)
{
	const struct endpoint *endpoint = plan->options->endpoint;
	struct client *client;
	struct snapshot_info info = { 0 };
	int ret = client_open(&client, endpoint, 0, err);
	if (ret)
		return ret;
	ret = client_snapshot_open(client, endpoint->name, &info, err);
	times->opened_ns = clock_now_ns();
	if (!ret) {
		ret = fetch_and_check(plan, client, &info, times, err);
		client_snapshot_info_done(&info);
	}
	client_close(client);
	times->checked_ns = clock_now_ns();
	return ret;
}
