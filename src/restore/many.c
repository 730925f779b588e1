#include "restore/many.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "base/base.h"
#include "restore/plan.h"
#include "restore/starter.h"
#include "sys/proc.h"

#define PARALLEL_MOST 64u

/* ---- names ---- */

/* The number of `name` in the group; 0: it has none. */
static unsigned number_of(const char *name, const char *group)
{
	size_t length = strlen(group);
	char *end;
	if (strncmp(name, group, length) || name[length] != '-')
		return 0;
	unsigned long number = strtoul(name + length + 1, &end, 10);
	return *end || end == name + length + 1 || number > INT32_MAX / 2 ? 0 : (unsigned)number;
}

int many_first_number(const char *root, const char *group, unsigned count, struct dp_err *err)
{
	struct instance *list;
	size_t live;
	char longest[2 * INSTANCE_ID_BYTES];
	unsigned highest = 0;
	int ret = instance_list(root, &list, &live, err);
	if (ret)
		return ret;
	for (size_t i = 0; i < live; i++)
		highest = DP_MAX(highest, number_of(list[i].name, group));
	free(list);
	snprintf(longest, sizeof(longest), "%.*s-%u", INSTANCE_ID_BYTES, group, highest + count);
	ret = instance_check_name(root, longest, err);
	return ret ? ret : (int)highest + 1;
}

/* ---- starting ---- */

struct many {
	const struct many_options *options;
	struct restore_options restore;
	struct many_start *starts;
	struct starter starter[PARALLEL_MOST];
	unsigned index[PARALLEL_MOST]; /* of what each starts */
	unsigned parallel, next, under_way, ended, running;
	int signal_fd;
	bool stopped; /* nothing more is begun */
	char name[2 * INSTANCE_ID_BYTES];
};

static int begin_next(struct many *many, struct dp_err *err)
{
	unsigned slot = 0;
	while (many->starter[slot].pid)
		slot++;
	snprintf(many->name, sizeof(many->name), "%s-%u", many->options->group, many->options->first + many->next);
	int ret = starter_begin(&many->starter[slot], &many->restore, many->options->spares, err);
	if (ret)
		return ret;
	many->index[slot] = many->next++;
	many->under_way++;
	return 0;
}

static void take_start(struct many *many, unsigned slot)
{
	struct many_start *start = &many->starts[many->index[slot]];
	int report_fd;
	starter_end(&many->starter[slot], start, &report_fd);
	many->under_way--;
	many->ended++;
	many->running += !start->error;
	if (many->options->keep || many->options->all_or_none)
		start->report_fd = report_fd;
	else if (report_fd >= 0)
		close(report_fd);
	many->stopped |= start->error && many->options->all_or_none;
	if (many->options->on_start)
		many->options->on_start(many->options->context, many->ended, start);
}

/* Waits until one has ended. false: a signal came. */
static bool wait_for_one(struct many *many)
{
	struct pollfd polls[PARALLEL_MOST + 1];
	polls[0] = (struct pollfd){ .fd = many->signal_fd, .events = POLLIN };
	for (unsigned i = 0; i < many->parallel; i++)
		polls[i + 1] = (struct pollfd){ .fd = many->starter[i].pid ? many->starter[i].fd : -1, .events = POLLIN };
	if (poll(polls, many->parallel + 1, -1) < 0)
		return true;
	for (unsigned i = 0; i < many->parallel; i++)
		if (polls[i + 1].revents)
			take_start(many, i);
	return !polls[0].revents;
}

static void not_begun(struct many *many, const char *why)
{
	for (unsigned i = many->next; i < many->options->count; i++) {
		many->starts[i] = (struct many_start){ .error = -ECANCELED, .report_fd = -1 };
		snprintf(many->starts[i].text, sizeof(many->starts[i].text), "%s", why);
	}
}

static int start_all(struct many *many, struct dp_err *err)
{
	unsigned count = many->options->count;
	int ret = 0;
	while (many->ended < count && (!many->stopped || many->under_way)) {
		while (!many->stopped && many->next < count && many->under_way < many->parallel && !ret)
			ret = begin_next(many, err);
		many->stopped |= ret != 0;
		if (many->under_way && !wait_for_one(many)) {
			for (unsigned i = 0; i < many->parallel; i++) {
				if (!many->starter[i].pid)
					continue;
				starter_cancel(&many->starter[i]);
				many->under_way--;
				many->starts[many->index[i]] = (struct many_start){ .error = -EINTR, .report_fd = -1,
										    .text = "stopped by a signal" };
			}
			ret = dp_fail(err, EINTR, "stopped by a signal");
			many->stopped = true;
		}
	}
	not_begun(many, ret ? err->text : "not begun, since another failed");
	return ret;
}

int many_begin(const struct many_options *options, struct many_start *starts, struct dp_err *err)
{
	struct many many = { .options = options, .restore = *options->restore, .starts = starts, .signal_fd = -1 };
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	many.parallel = options->parallel ? options->parallel : (unsigned)DP_MAX(processors, 1);
	many.parallel = DP_MIN(many.parallel, PARALLEL_MOST);
	many.restore.name = many.name;
	many.restore.group = options->group;
	many.restore.name_is_free = true;
	many.restore.foreground = options->keep;
	if (options->stop && (many.signal_fd = signalfd(-1, options->stop, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
		return dp_fail_errno(err, errno, "signalfd");
	int ret = start_all(&many, err);
	if (many.signal_fd >= 0)
		close(many.signal_fd);
	if (options->all_or_none && many.running < options->count) {
		many_end(starts, options->count, 0);
		for (unsigned i = 0; i < options->count; i++)
			if (!starts[i].error) {
				starts[i].error = -ECANCELED;
				snprintf(starts[i].text, sizeof(starts[i].text), "ended, since another failed");
			}
		many.running = 0;
	}
	if (options->all_or_none && !options->keep)
		for (unsigned i = 0; i < options->count; i++) {
			dp_close_fd(&starts[i].report_fd);
			starts[i].report_fd = -1;
		}
	return ret && !(many.running && ret != -EINTR) ? ret : (int)many.running;
}

/* ---- ending ---- */

static unsigned signal_all(const struct many_start *starts, unsigned count, int32_t number)
{
	unsigned left = 0;
	for (unsigned i = 0; i < count; i++)
		if (!starts[i].error && starts[i].report_fd >= 0) {
			send(starts[i].report_fd, &number, sizeof(number), MSG_NOSIGNAL);
			left++;
		}
	return left;
}

static bool has_ended(struct many_start *start, uint64_t until_ns)
{
	struct pollfd ended = { .fd = start->report_fd, .events = POLLIN };
	uint64_t now_ns = clock_now_ns();
	int left_ms = now_ns < until_ns ? (int)DP_MIN((until_ns - now_ns) / 1000000u + 1, 1000000u) : 0;
	if (poll(&ended, 1, left_ms) <= 0)
		return false;
	close(start->report_fd);
	start->report_fd = -1;
	return true;
}

void many_end(struct many_start *starts, unsigned count, uint64_t patience_ns)
{
	for (int round = patience_ns ? 0 : 1; round < 2; round++) {
		uint64_t until_ns = clock_now_ns() + (round ? UINT64_C(60000000000) : patience_ns);
		if (!signal_all(starts, count, round ? SIGKILL : SIGTERM))
			return;
		for (unsigned i = 0; i < count; i++)
			if (!starts[i].error && starts[i].report_fd >= 0)
				has_ended(&starts[i], until_ns);
	}
}

/* Has it said how it ended, or gone without a word? */
static bool take_end(struct many_start *start, unsigned *failed)
{
	struct report report;
	ssize_t got = recv(start->report_fd, &report, sizeof(report), MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (got == sizeof(report) && report.kind != REPORT_ENDED)
		return false;
	*failed += got != sizeof(report) || report.code || report.text[0];
	close(start->report_fd);
	start->report_fd = -1;
	return true;
}

unsigned many_wait(struct many_start *starts, unsigned count, const sigset_t *forward)
{
	cleanup_free struct pollfd *polls = calloc(count + 1u, sizeof(*polls));
	cleanup_fd int signal_fd = signalfd(-1, forward, SFD_CLOEXEC | SFD_NONBLOCK);
	unsigned left = 0, failed = 0;
	if (!polls || signal_fd < 0)
		return count;
	for (unsigned i = 0; i < count; i++)
		left += starts[i].report_fd >= 0;
	while (left) {
		struct signalfd_siginfo info;
		for (unsigned i = 0; i < count; i++)
			polls[i] = (struct pollfd){ .fd = starts[i].report_fd, .events = POLLIN };
		polls[count] = (struct pollfd){ .fd = signal_fd, .events = POLLIN };
		if (poll(polls, count + 1u, -1) < 0)
			continue;
		for (unsigned i = 0; i < count; i++)
			left -= polls[i].revents && take_end(&starts[i], &failed);
		if (read(signal_fd, &info, sizeof(info)) == sizeof(info))
			signal_all(starts, count, (int32_t)info.ssi_signo);
	}
	return failed;
}

/* ---- what they take ---- */

/* A warden's memory is its target's. */
static bool is_warden(pid_t pid)
{
	char path[64];
	cleanup_free char *name = NULL;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	return io_read_file(path, &name, 64) > 0 && !strncmp(name, "dp-warden", 9);
}

static uint64_t pss_bytes(pid_t pid)
{
	char path[64];
	cleanup_free char *text = NULL;
	if (is_warden(pid))
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)pid);
	if (io_read_file(path, &text, 65536) < 0)
		return 0;
	const char *line = strstr(text, "\nPss:");
	return line ? strtoull(line + 5, NULL, 10) * 1024 : 0;
}

static uint64_t files_bytes(const char *path)
{
	uint64_t bytes = 0;
	DIR *directory = opendir(path);
	for (struct dirent *entry = directory ? readdir(directory) : NULL; entry; entry = readdir(directory)) {
		struct stat info;
		if (entry->d_name[0] == '.' || fstatat(dirfd(directory), entry->d_name, &info, AT_SYMLINK_NOFOLLOW))
			continue;
		bytes += (uint64_t)info.st_blocks * 512;
		cleanup_free char *below = S_ISDIR(info.st_mode) ? format_text("%s/%s", path, entry->d_name) : NULL;
		bytes += below ? files_bytes(below) : 0;
	}
	if (directory)
		closedir(directory);
	return bytes;
}

void many_add_memory(const struct instance *instance, struct many_memory *memory)
{
	cleanup_free pid_t *all = NULL;
	pid_t *tasks;
	size_t count;
	uint64_t tree = 0, everything = 0;
	if (!instance_tasks(instance, &tasks, &count)) {
		for (size_t i = 0; i < count; i++)
			tree += pss_bytes(tasks[i]);
		free(tasks);
		memory->tasks += (unsigned)count;
	} else {
		count = 0;
	}
	ssize_t processes = proc_tree(instance->supervisor.pid, &all); /* init and the tree among them */
	for (ssize_t i = 0; i < processes; i++)
		everything += pss_bytes(all[i]);
	memory->our_tasks += (unsigned)DP_MAX(processes - (ssize_t)count, 0);
	memory->tree += tree;
	memory->ours += everything > tree ? everything - tree : 0;
	memory->files += files_bytes(instance->directory);
}
