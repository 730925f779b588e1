#include "migrate/clone.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/base.h"
#include "restore/restore.h"
#include "sys/proc.h"
#include "transport/endpoint.h"

#define ARGUMENTS_LIMIT 60
#define NAME_BYTES 256 /* of a file or socket, for the message */

/* ---- what both would write to ---- */

/* The open flags of a descriptor, from fdinfo; O_RDONLY where it is gone. */
static unsigned flags_of(pid_t pid, const char *number)
{
	char path[300];
	unsigned flags = 0;
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%s", pid, number);
	const char *line = io_read_file(path, &text, 1 << 20) > 0 ? strstr(text, "flags:") : NULL;
	if (line)
		sscanf(line, "flags: %o", &flags);
	return flags;
}

/* Is there a Unix socket of this inode that has a name in the file system? */
static bool is_bound(pid_t pid, unsigned long inode, char name[static NAME_BYTES])
{
	char path[64];
	bool found = false;
	snprintf(path, sizeof(path), "/proc/%d/net/unix", pid);
	cleanup_file FILE *file = fopen(path, "re");
	char line[512];
	while (file && !found && fgets(line, sizeof(line), file)) {
		unsigned long number;
		found = sscanf(line, "%*s %*s %*s %*s %*s %*s %lu %255s", &number, name) == 2 && number == inode &&
			name[0] == '/';
	}
	return found;
}

static int check_descriptor(pid_t pid, const char *number, struct dp_err *err)
{
	char path[300], name[NAME_BYTES];
	struct stat info;
	snprintf(path, sizeof(path), "/proc/%d/fd/%s", pid, number);
	ssize_t length = readlink(path, name, sizeof(name) - 1);
	if (length < 0 || stat(path, &info) < 0)
		return 0; /* closed meanwhile */
	name[length] = 0;
	if (S_ISREG(info.st_mode) && info.st_nlink > 0 && (flags_of(pid, number) & O_ACCMODE) != O_RDONLY)
		return dp_fail(err, EOPNOTSUPP, "process %d has %s open for writing, and the clone would write to it too: "
			       "--files shared, if that does no harm", pid, name);
	if (S_ISSOCK(info.st_mode) && is_bound(pid, info.st_ino, name))
		return dp_fail(err, EOPNOTSUPP, "process %d has the socket %s, and the clone would take its name: "
			       "--files shared, if that does no harm", pid, name);
	return 0;
}

/* A file that is mapped shared and writable, or memory shared by name (POSIX, System V), is the original's. */
static int check_area(void *context, const struct proc_area *area)
{
	return area->shared && area->write && area->name[0] == '/' && strncmp(area->name, "/dev/zero", 9) &&
	       strncmp(area->name, "/memfd:", 7) && strncmp(area->name, "/anon_hugepage", 14);
}

static int check_process(pid_t pid, struct dp_err *err)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	DIR *directory = opendir(path);
	int rc = 0;
	for (struct dirent *entry; directory && rc == 0 && (entry = readdir(directory));)
		if (entry->d_name[0] != '.')
			rc = check_descriptor(pid, entry->d_name, err);
	if (directory)
		closedir(directory);
	if (rc == 0 && proc_each_area(pid, check_area, NULL) > 0)
		return dp_fail(err, EOPNOTSUPP, "process %d has a file mapped shared and writable, and the clone would write to it "
			       "too: --files shared, if that does no harm", pid);
	return rc;
}

static int check_files(pid_t root, struct dp_err *err)
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = proc_tree(root, &pids);
	int rc = count < 0 ? dp_fail_errno(err, (int)-count, "look at process %d", root) : 0;
	for (ssize_t i = 0; i < count && rc == 0; i++)
		rc = check_process(pids[i], err);
	return rc;
}

/* ---- the clone ---- */

/* A place for the offer's socket that only we can reach; it is removed by whoever listens there. */
static int choose_place(const char *registry, char *listen, size_t size, struct dp_err *err)
{
	uint64_t number;
	const char *root = instance_root(registry);
	if (mkdir(root, 0700) < 0 && errno != EEXIST)
		return dp_fail_errno(err, errno, "make %s", root);
	if (getrandom(&number, sizeof(number), 0) != (ssize_t)sizeof(number))
		return dp_fail_errno(err, errno, "choose a name");
	snprintf(listen, size, "unix://%s/.clone-%llx.sock", root, (unsigned long long)number);
	return 0;
}

static int restore_clone(const struct clone_options *options, const char *uri, struct clone_result *result, struct dp_err *err)
{
	struct endpoint endpoint;
	struct restore_session session;
	char *arguments[ARGUMENTS_LIMIT] = { (char *)(uintptr_t)"--tcp-close" };
	for (size_t i = 0; i < options->criu_argument_count; i++)
		arguments[i + 1] = options->criu_arguments[i];
	const struct restore_options restore = { .root = instance_root(options->registry),
						 .endpoint = &endpoint,
						 .name = options->name,
						 .network = options->host_network ? NULL : RESTORE_NETWORK_OWN,
						 .migrate = options->full,
						 .record = RECORD_NEVER,
						 .verbose = options->verbose,
						 .criu_arguments = arguments,
						 .criu_argument_count = options->criu_argument_count + 1 };
	int rc = endpoint_parse(&endpoint, uri, err);
	if (rc == 0)
		rc = restore_start(&restore, &session, err);
	if (rc == 0) {
		result->instance = session.instance;
		restore_session_done(&session);
	}
	return rc;
}

int clone_make(const struct clone_options *options, struct clone_result *result, struct dp_err *err)
{
	uint64_t started_ns = clock_now_ns();
	char listen[1100], name[64];
	struct offer *offer = NULL;
	if (options->criu_argument_count >= ARGUMENTS_LIMIT)
		return dp_fail(err, E2BIG, "too many options for CRIU");
	int rc = options->share_files ? 0 : check_files(options->pid, err);
	if (rc == 0)
		rc = choose_place(options->registry, listen, sizeof(listen), err);
	if (rc < 0)
		return rc;
	snprintf(name, sizeof(name), "clone:%d", options->pid);
	const struct offer_options offered = { .pid = options->pid,
					       .copy = true,
					       .tcp_close = true,
					       .listen = listen,
					       .name = name,
					       .registry = options->registry,
					       .verbose = options->verbose,
					       .criu_arguments = options->criu_arguments,
					       .criu_argument_count = options->criu_argument_count };
	rc = offer_make(&offer, &offered, &result->offer, err);
	if (rc == 0)
		rc = restore_clone(options, result->offer.uri, result, err);
	if (rc == 0)
		rc = offer_detach(offer, err);
	offer_free(offer); /* where anything failed, the shadows go here */
	result->total_ns = clock_now_ns() - started_ns;
	if (rc < 0)
		dp_err_doing(err, "clone of process %d", options->pid);
	return rc;
}
