#include "instance/instance.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include "base/base.h"
#include "instance/process.h"
#include "sys/proc.h"

#define DEFAULT_ROOT "/run/distri-proc"
#define MEMORY_ROOT "/dev/shm/distri-proc"
#define LOGS "logs"

const char *instance_root(const char *override)
{
	if (override && *override)
		return override;
	const char *environment = getenv("DISTRI_PROC_ROOT");
	return environment && *environment ? environment : DEFAULT_ROOT;
}

const char *instance_path(const struct instance *instance, const char *file, char *buffer, size_t size)
{
	snprintf(buffer, size, "%s/%s", instance->directory, file);
	return buffer;
}

static int make_directory(const char *path, struct dp_err *err)
{
	if (mkdir(path, 0700) && errno != EEXIST)
		return dp_fail_errno(err, errno, "make directory %s", path);
	return 0;
}

static bool is_tmpfs(const char *path)
{
	struct statfs info;
	return !statfs(path, &info) && info.f_type == TMPFS_MAGIC;
}

static bool name_is_proper(const char *name)
{
	if (!isalnum((unsigned char)*name) || strlen(name) >= INSTANCE_ID_BYTES || !strcmp(name, LOGS))
		return false;
	for (const char *at = name; *at; at++)
		if (!isalnum((unsigned char)*at) && !strchr("._-", *at))
			return false;
	return true;
}

/* "team/redis:prod" -> "redis-3f2a" */
static void make_id(const char *snapshot, char id[static INSTANCE_ID_BYTES])
{
	const char *slash = strrchr(snapshot, '/');
	const char *start = slash ? slash + 1 : snapshot;
	uint16_t random = 0;
	if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != sizeof(random))
		random = (uint16_t)clock_now_ns();
	snprintf(id, INSTANCE_ID_BYTES, "%.*s-%04x", (int)DP_MIN(strcspn(start, ":"), 40u), start, random);
}

/* Claims ROOT/ID. On a root that is no tmpfs the directory proper is in memory and ROOT/ID links to it. -EEXIST: try again. */
static int claim_directory(const char *root, bool in_memory, const char *id, struct dp_err *err)
{
	cleanup_free char *entry = format_text("%s/%s", root, id);
	cleanup_free char *target = format_text(MEMORY_ROOT "/%s", id);
	if (!entry || !target)
		return dp_fail(err, ENOMEM, "out of memory");
	if (!in_memory) {
		if (mkdir(entry, 0700))
			return dp_fail_errno(err, errno, "make directory %s", entry);
		return 0;
	}
	if (mkdir(target, 0700))
		return dp_fail_errno(err, errno, "make directory %s", target);
	if (symlink(target, entry)) {
		int code = errno;
		rmdir(target);
		return dp_fail_errno(err, code, "link %s", entry);
	}
	return 0;
}

int instance_check_name(const char *root, const char *name, struct dp_err *err)
{
	if (!name_is_proper(name))
		return dp_fail(err, EINVAL, "`%s` is no name for an instance: letters, digits and . _ - only, at most %d", name,
			       INSTANCE_ID_BYTES - 1);
	struct instance *list;
	size_t count;
	int ret = instance_list(root, &list, &count, err);
	if (ret)
		return ret;
	for (size_t i = 0; i < count && !ret; i++)
		if (!strcmp(list[i].name, name) || !strcmp(list[i].id, name))
			ret = dp_fail(err, EEXIST, "an instance named %s runs (pid %d): stop it or choose another --name", name,
				      (int)list[i].root.pid);
	free(list);
	return ret;
}

int instance_create_dir(const char *root, const char *snapshot, const char *name, struct instance *instance, struct dp_err *err)
{
	*instance = (struct instance){ 0 };
	if (strlen(root) > 400 || root[0] != '/')
		return dp_fail(err, EINVAL, "directory of instances `%s`: give an absolute path of at most 400 characters", root);
	int ret = name ? instance_check_name(root, name, err) : 0;
	if (!ret)
		ret = make_directory(root, err);
	bool in_memory = !ret && !is_tmpfs(root) && is_tmpfs("/dev/shm");
	if (!ret && in_memory)
		ret = make_directory(MEMORY_ROOT, err);
	if (ret)
		return ret;
	for (int attempt = 0; attempt < 100; attempt++) {
		make_id(snapshot, instance->id);
		ret = claim_directory(root, in_memory, instance->id, err);
		if (ret != -EEXIST)
			break;
	}
	if (ret)
		return ret;
	snprintf(instance->directory, sizeof(instance->directory), "%s/%s", root, instance->id);
	snprintf(instance->name, sizeof(instance->name), "%s", name ? name : instance->id);
	snprintf(instance->snapshot, sizeof(instance->snapshot), "%s", snapshot);
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	instance->created_unix_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
	char path[PATH_MAX];
	ret = make_directory(instance_path(instance, "images", path, sizeof(path)), err);
	if (!ret)
		ret = make_directory(instance_path(instance, "work", path, sizeof(path)), err);
	if (ret)
		instance_remove(instance, NULL);
	return ret;
}

static int write_pid(const struct instance *instance, const char *file, const struct instance_process *process)
{
	char path[PATH_MAX], text[32];
	if (process->pid <= 0)
		return 0;
	int length = snprintf(text, sizeof(text), "%d\n", (int)process->pid);
	return io_write_file(instance_path(instance, file, path, sizeof(path)), text, (size_t)length, 0600);
}

int instance_save(const struct instance *instance, struct dp_err *err)
{
	char path[PATH_MAX], fresh[PATH_MAX];
	cleanup_free char *text = instance_encode(instance);
	if (!text)
		return dp_fail(err, ENOMEM, "out of memory");
	instance_path(instance, "state.json", path, sizeof(path));
	instance_path(instance, "state.json.new", fresh, sizeof(fresh));
	int ret = io_write_file(fresh, text, strlen(text), 0600);
	if (!ret && rename(fresh, path))
		ret = -errno;
	const struct { const char *file; const struct instance_process *process; } pids[] = {
		{ "root-pid", &instance->root },
		{ "init-pid", &instance->init },
		{ "pager-pid", &instance->pager },
		{ "supervisor-pid", &instance->supervisor },
	};
	for (size_t i = 0; i < ARRAY_LENGTH(pids) && !ret; i++)
		ret = write_pid(instance, pids[i].file, pids[i].process);
	return ret ? dp_fail_errno(err, -ret, "write state of %s", instance->directory) : 0;
}

int instance_load(const char *root, const char *id, struct instance *instance, struct dp_err *err)
{
	cleanup_free char *path = format_text("%s/%s/state.json", root, id);
	cleanup_free char *text = NULL;
	if (!path)
		return dp_fail(err, ENOMEM, "out of memory");
	ssize_t length = io_read_file(path, &text, 1u << 20);
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read %s", path);
	int ret = instance_decode(instance, text, err);
	if (ret) {
		dp_err_doing(err, "%s", path);
		return ret;
	}
	if (strcmp(instance->id, id))
		return dp_fail(err, EBADMSG, "%s names another instance, %s", path, instance->id);
	snprintf(instance->directory, sizeof(instance->directory), "%s/%s", root, id);
	return 0;
}

int instance_remove(const struct instance *instance, struct dp_err *err)
{
	char target[PATH_MAX];
	ssize_t length = readlink(instance->directory, target, sizeof(target) - 1);
	int ret = 0;
	if (length > 0) {
		target[length] = 0;
		/* Only what we link to: a link of anybody else's is removed, not followed. */
		if (!strncmp(target, MEMORY_ROOT "/", strlen(MEMORY_ROOT) + 1) && !strchr(target + strlen(MEMORY_ROOT) + 1, '/'))
			ret = remove_tree(target);
	}
	if (!ret)
		ret = remove_tree(instance->directory);
	return ret ? dp_fail_errno(err, -ret, "remove %s", instance->directory) : 0;
}

/* ROOT/logs is often on another file system than the instance: copied, not renamed. */
static int copy_log(const char *from, const char *to)
{
	cleanup_free char *text = NULL;
	ssize_t length = io_read_file(from, &text, 64u << 20);
	return length < 0 ? (int)length : io_write_file(to, text, (size_t)length, 0600);
}

/* Failures must not fill the disk: beyond the limit the oldest goes, but none of `id`. */
static void prune_logs(const char *directory, const char *id)
{
	for (;;) {
		char oldest[256] = "";
		struct timespec oldest_time = { 0 };
		size_t files = 0;
		DIR *logs = opendir(directory);
		if (!logs)
			return;
		for (struct dirent *entry = readdir(logs); entry; entry = readdir(logs)) {
			struct stat info;
			if (entry->d_name[0] == '.' || fstatat(dirfd(logs), entry->d_name, &info, AT_SYMLINK_NOFOLLOW))
				continue;
			files++;
			bool older = !*oldest || info.st_mtim.tv_sec < oldest_time.tv_sec ||
				     (info.st_mtim.tv_sec == oldest_time.tv_sec && info.st_mtim.tv_nsec < oldest_time.tv_nsec);
			if (older && strncmp(entry->d_name, id, strlen(id))) {
				snprintf(oldest, sizeof(oldest), "%s", entry->d_name);
				oldest_time = info.st_mtim;
			}
		}
		bool removed = files > INSTANCE_LOG_FILES && *oldest && !unlinkat(dirfd(logs), oldest, 0);
		closedir(logs);
		if (!removed)
			return;
	}
}

void instance_keep_logs(const struct instance *instance, char *kept, size_t kept_bytes)
{
	static const char *const logs[] = { "restore.log", "pager.log", "supervisor.log" };
	char from[PATH_MAX];
	cleanup_free char *directory = format_text("%.*s/" LOGS, (int)(strlen(instance->directory) - strlen(instance->id) - 1),
						   instance->directory);
	*kept = 0;
	if (!directory || make_directory(directory, NULL))
		return;
	for (size_t i = 0; i < ARRAY_LENGTH(logs); i++) {
		cleanup_free char *to = format_text("%s/%s.%s", directory, instance->id, logs[i]);
		if (to && !copy_log(instance_path(instance, logs[i], from, sizeof(from)), to) && !*kept)
			snprintf(kept, kept_bytes, "%s", to);
	}
	prune_logs(directory, instance->id);
}

/* Live as long as its supervisor, or, that one killed, its tree. */
static bool is_live(const struct instance *instance)
{
	return process_is_alive(instance->supervisor.pid, instance->supervisor.start_time) ||
	       process_is_alive(instance->init.pid, instance->init.start_time);
}

static void sweep_stateless(const char *root, const char *id)
{
	struct instance rubbish = { 0 };
	struct stat info;
	snprintf(rubbish.directory, sizeof(rubbish.directory), "%s/%s", root, id);
	/* A restore that is fetching its images has no state yet; a minute is far more than it needs. */
	if (stat(rubbish.directory, &info) || time(NULL) - info.st_mtime > 60)
		instance_remove(&rubbish, NULL);
}

/* Its own registry keeps its last words first (instance_list). Nobody here knows which that is, so it gets a minute from the
 * first look on. */
static void sweep_dead(struct instance *dead)
{
	char path[PATH_MAX];
	struct stat info;
	if (stat(instance_path(dead, INSTANCE_SEEN_DEAD, path, sizeof(path)), &info))
		dp_close_fd(&(int){ open(path, O_CREAT | O_CLOEXEC, 0600) });
	else if (time(NULL) - info.st_mtime > 60)
		instance_remove(dead, NULL);
}

void instance_sweep_memory(void)
{
	DIR *directory = opendir(MEMORY_ROOT);
	for (struct dirent *entry = directory ? readdir(directory) : NULL; entry; entry = readdir(directory)) {
		struct instance found;
		if (!name_is_proper(entry->d_name))
			continue;
		int ret = instance_load(MEMORY_ROOT, entry->d_name, &found, NULL);
		if (ret == -ENOENT)
			sweep_stateless(MEMORY_ROOT, entry->d_name);
		else if (!ret && !is_live(&found))
			sweep_dead(&found);
	}
	if (directory)
		closedir(directory);
}

static int by_age(const void *a, const void *b)
{
	const struct instance *first = a, *second = b;
	return first->created_unix_ns < second->created_unix_ns ? -1 : first->created_unix_ns > second->created_unix_ns;
}

int instance_list(const char *root, struct instance **list, size_t *count, struct dp_err *err)
{
	size_t room = 0;
	*list = NULL;
	*count = 0;
	DIR *directory = opendir(root);
	if (!directory)
		return errno == ENOENT ? 0 : dp_fail_errno(err, errno, "read %s", root);
	int ret = 0;
	for (struct dirent *entry = readdir(directory); entry && !ret; entry = readdir(directory)) {
		struct instance found;
		if (!name_is_proper(entry->d_name))
			continue;
		int loaded = instance_load(root, entry->d_name, &found, NULL);
		if (loaded == -ENOENT)
			sweep_stateless(root, entry->d_name);
		if (loaded)
			continue;
		if (!is_live(&found)) { /* killed, all of it: what it last said may be all that tells why */
			char kept[PATH_MAX];
			instance_keep_logs(&found, kept, sizeof(kept));
			instance_remove(&found, NULL);
			continue;
		}
		if (*count == room) {
			room = room ? room * 2 : 16;
			struct instance *larger = reallocarray(*list, room, sizeof(*larger));
			if (!larger) {
				ret = dp_fail(err, ENOMEM, "out of memory");
				break;
			}
			*list = larger;
		}
		(*list)[(*count)++] = found;
	}
	closedir(directory);
	if (ret) {
		free(*list);
		*list = NULL;
	} else if (*count > 1) {
		qsort(*list, *count, sizeof(**list), by_age);
	}
	return ret;
}

static const struct instance *pick(const struct instance *list, size_t count, const char *key, size_t *fitting)
{
	const struct instance *found = NULL;
	for (size_t i = 0; i < count; i++)
		if (!strcmp(list[i].id, key) || !strcmp(list[i].name, key) || !strcmp(list[i].container, key)) {
			*fitting = 1;
			return &list[i];
		}
	*fitting = 0;
	for (size_t i = 0; i < count; i++)
		if (!strncmp(list[i].id, key, strlen(key)) || !strncmp(list[i].name, key, strlen(key)) ||
		    !strncmp(list[i].container, key, strlen(key))) {
			found = &list[i];
			(*fitting)++;
		}
	return found;
}

int instance_find(const char *root, const char *key, struct instance *instance, struct dp_err *err)
{
	struct instance *list;
	size_t count, fitting;
	char *end;
	int ret = instance_list(root, &list, &count, err);
	if (ret)
		return ret;
	const struct instance *found = *key ? pick(list, count, key, &fitting) : NULL;
	if (found && fitting > 1)
		ret = dp_fail(err, EEXIST, "%zu instances begin with `%s`: give more of the id (`distri-proc ps` lists them)",
			      fitting, key);
	else if (found)
		*instance = *found;
	free(list);
	if (ret || found)
		return ret;
	long pid = strtol(key, &end, 10);
	if (end != key && !*end && pid > 0 && pid <= INT32_MAX)
		return instance_find_by_pid(root, (pid_t)pid, instance, err);
	return dp_fail(err, ENOENT, "no instance `%s` (`distri-proc ps` lists them)", key);
}

int instance_find_by_pid(const char *root, pid_t pid, struct instance *instance, struct dp_err *err)
{
	struct instance *list;
	size_t count;
	int ret = instance_list(root, &list, &count, err);
	if (ret)
		return ret;
	ret = -ENOENT;
	for (pid_t at = pid; at > 1 && ret; at = process_parent(at))
		for (size_t i = 0; i < count && ret; i++)
			if (list[i].init.pid == at || list[i].root.pid == at) {
				*instance = list[i];
				ret = 0;
			}
	free(list);
	return ret ? dp_fail(err, ENOENT, "no instance has a process %d", (int)pid) : 0;
}

int instance_tasks(const struct instance *instance, pid_t **pids, size_t *count)
{
	if (instance->container[0]) {
		if (!process_is_alive(instance->root.pid, instance->root.start_time))
			return -ESRCH;
		ssize_t all = proc_tree(instance->root.pid, pids);
		*count = (size_t)DP_MAX(all, 0);
		return all < 0 ? (int)all : 0;
	}
	if (!process_is_alive(instance->init.pid, instance->init.start_time))
		return -ESRCH;
	ssize_t processes = proc_tree(instance->init.pid, pids);
	if (processes < 0)
		return (int)processes;
	*count = (size_t)processes - 1;
	memmove(*pids, *pids + 1, *count * sizeof(**pids));
	return 0;
}
