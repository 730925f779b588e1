/* pss-sampler: samples the proportional set size of a process tree from outside.
 *
 * The kernel divides a shared page among the processes that map it, so the sum over the tree counts fork's sharing once. Two
 * tasks with one mm (a vfork, a helper of the pager) are two entries of /proc for the same memory: kcmp tells, they count once.
 * A tree changes while it is walked; a process that ends meanwhile counts nothing. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAX_TASKS 4096
#define MOST_PASSES 20

struct options {
	int pid;
	unsigned interval_ms, seconds;
	uint64_t limit_bytes;
	const char *csv;
	bool json;
};
struct samples {
	uint64_t *pss_bytes;
	size_t count, room;
};
static volatile sig_atomic_t asked_to_stop;

static void on_stop(int number)
{
	asked_to_stop = number;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

/* Reads a small file of /proc whole. Returns its length or -1. */
static ssize_t read_proc(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;

	if (fd < 0)
		return -1;
	while (length < size - 1) {
		ssize_t got = read(fd, text + length, size - 1 - length);
		if (got <= 0)
			break;
		length += (size_t)got;
	}
	close(fd);
	text[length] = 0;
	return (ssize_t)length;
}

static int parent_of(int pid)
{
	char path[64], text[1024];
	int parent;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_proc(path, text, sizeof(text)) <= 0)
		return -1;
	const char *end = strrchr(text, ')'); /* the name before it may hold anything */
	return end && sscanf(end + 1, " %*c %d", &parent) == 1 ? parent : -1;
}

/* /proc/PID/task/TID/children is one file a thread; one pass over /proc is cheaper for a whole tree and needs no kernel
 * option. */
static size_t tree_of(int root, int *tree)
{
	static int pids[1 << 16], parents[1 << 16];
	size_t all = 0, count = 0;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d", root);
	if (access(path, F_OK))
		return 0;
	DIR *list = opendir("/proc");
	for (struct dirent *entry; list && (entry = readdir(list));) {
		int pid = atoi(entry->d_name);
		if (pid > 0 && all < sizeof(pids) / sizeof(pids[0]) && (parents[all] = parent_of(pid)) >= 0)
			pids[all++] = pid;
	}
	if (list)
		closedir(list);
	tree[count++] = root;
	for (size_t i = 0; i < count; i++)
		for (size_t k = 0; k < all && count < MAX_TASKS; k++)
			if (parents[k] == tree[i] && pids[k] != root)
				tree[count++] = pids[k];
	return count;
}

static uint64_t pss_of(int pid)
{
	char path[64], text[4096];
	unsigned long long kib;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	if (read_proc(path, text, sizeof(text)) <= 0)
		return 0;
	const char *line = strstr(text, "\nPss:");
	return line && sscanf(line, " Pss: %llu kB", &kib) == 1 ? kib * 1024 : 0;
}

static bool mm_seen(int pid, const int *seen, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (syscall(SYS_kcmp, pid, seen[i], KCMP_VM, 0, 0) == 0)
			return true;
	return false;
}

/* One pass over the tree. -1 where the root has gone (a zombie too: it has no memory). */
static int64_t one_pass(const int *tree, size_t count)
{
	static int seen[MAX_TASKS];
	size_t seen_count = 0;
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		uint64_t pss = pss_of(tree[i]);
		if (i == 0 && pss == 0)
			return -1;
		if (pss == 0 || mm_seen(tree[i], seen, seen_count))
			continue;
		seen[seen_count++] = tree[i];
		sum += pss;
	}
	return count ? (int64_t)sum : -1;
}

/* A process that is forked or ends during the pass changes the shares of all others, so that the sum would count memory twice;
 * such a pass is made again. */
static int64_t sample(int root)
{
	static int before[MAX_TASKS], after[MAX_TASKS];
	size_t count = tree_of(root, before), count_after;
	int64_t sum = -1;

	for (unsigned pass = 0; pass < MOST_PASSES; pass++) {
		sum = one_pass(before, count);
		count_after = tree_of(root, after);
		if (count_after == count && !memcmp(before, after, count * sizeof(int)))
			return sum;
		count = count_after;
		memcpy(before, after, count * sizeof(int));
	}
	return sum;
}

static int compare(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static void keep(struct samples *samples, uint64_t pss)
{
	if (samples->count == samples->room) {
		samples->room = samples->room ? samples->room * 2 : 4096;
		samples->pss_bytes = realloc(samples->pss_bytes, samples->room * sizeof(uint64_t));
		if (!samples->pss_bytes) {
			fprintf(stderr, "pss-sampler: out of memory\n");
			exit(2);
		}
	}
	samples->pss_bytes[samples->count++] = pss;
}

static uint64_t quantile(const struct samples *samples, double share)
{
	return samples->pss_bytes[(size_t)((double)(samples->count - 1) * share)];
}

static int report(const struct options *options, struct samples *samples)
{
	if (!samples->count) {
		fprintf(stderr, "pss-sampler: process %d has no memory to sample: check the pid\n", options->pid);
		return 2;
	}
	uint64_t above = 0;
	for (size_t i = 0; i < samples->count; i++)
		above += options->limit_bytes && samples->pss_bytes[i] > options->limit_bytes;
	qsort(samples->pss_bytes, samples->count, sizeof(uint64_t), compare);
	uint64_t max = quantile(samples, 1);
	printf(options->json
		       ? "{\"samples\": %zu, \"p50_bytes\": %llu, \"p99_bytes\": %llu, \"max_bytes\": %llu, \"limit_bytes\": %llu, "
			 "\"above_limit\": %llu}\n"
		       : "samples %zu  p50 %llu  p99 %llu  max %llu  limit %llu  above %llu\n",
	       samples->count, (unsigned long long)quantile(samples, 0.5), (unsigned long long)quantile(samples, 0.99),
	       (unsigned long long)max, (unsigned long long)options->limit_bytes, (unsigned long long)above);
	return above ? 1 : 0;
}

static void parse_options(int argc, char **argv, struct options *options)
{
	static const struct option names[] = {{"pid", 1, NULL, 'p'},   {"interval-ms", 1, NULL, 'i'}, {"seconds", 1, NULL, 's'},
					      {"limit", 1, NULL, 'l'}, {"csv", 1, NULL, 'c'},	      {"json", 0, NULL, 'j'},
					      {"help", 0, NULL, 'h'},  {NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1)
		switch (option) {
		case 'p': options->pid = atoi(optarg); break;
		case 'i': options->interval_ms = (unsigned)atoi(optarg); break;
		case 's': options->seconds = (unsigned)atoi(optarg); break;
		case 'l': options->limit_bytes = strtoull(optarg, NULL, 10); break;
		case 'c': options->csv = optarg; break;
		case 'j': options->json = true; break;
		case 'h':
			printf("usage: pss-sampler --pid N [--interval-ms 50] [--seconds N] [--limit BYTES] [--csv FILE] [--json]\n"
			       "Samples the proportional set size of process N and all its descendants until it ends, the time is over or\n"
			       "SIGTERM comes; prints the largest value and quantiles. Exits 1 where a sample was above the limit.\n");
			exit(0);
		default: fprintf(stderr, "pss-sampler: see --help\n"); exit(2);
		}
	if (options->pid <= 0 || !options->interval_ms) {
		fprintf(stderr, "pss-sampler: name the process: --pid N\n");
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct options options = {.interval_ms = 50};
	struct samples samples = {0};
	struct sigaction action = {.sa_handler = on_stop};

	parse_options(argc, argv, &options);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	FILE *csv = options.csv ? fopen(options.csv, "we") : NULL;
	if (options.csv && !csv) {
		fprintf(stderr, "pss-sampler: open %s: %s\n", options.csv, strerror(errno));
		return 2;
	}
	if (csv)
		fprintf(csv, "seconds,pss_bytes\n");
	uint64_t start_ns = now_ns(), next_ns = start_ns;
	while (!asked_to_stop && (!options.seconds || now_ns() - start_ns < options.seconds * 1000000000ull)) {
		int64_t pss = sample(options.pid);
		if (pss < 0)
			break;
		keep(&samples, (uint64_t)pss);
		if (csv)
			fprintf(csv, "%.3f,%lld\n", (double)(now_ns() - start_ns) / 1e9, (long long)pss);
		next_ns += options.interval_ms * 1000000ull;
		uint64_t now = now_ns();
		if (next_ns > now)
			poll(NULL, 0, (int)((next_ns - now) / 1000000));
		else
			next_ns = now; /* a slow sample is not made up for */
	}
	if (csv && fclose(csv)) {
		fprintf(stderr, "pss-sampler: write %s: %s\n", options.csv, strerror(errno));
		return 2;
	}
	int code = report(&options, &samples);

	free(samples.pss_bytes);
	return code;
}
