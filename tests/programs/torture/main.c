#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define STUCK_SECONDS 120

static const struct kind *const kinds[] = { &kind_threads, &kind_fork,	 &kind_exec,	&kind_spawn, &kind_remap,
					    &kind_unmap,   &kind_advise, &kind_protect, &kind_stack, &kind_signals,
					    &kind_direct,  &kind_brk,	 &kind_pipe,	&kind_huge,  &kind_shared,
					    &kind_lock,	   &kind_sparse, &kind_big,	&kind_areas };
#define KIND_COUNT (sizeof(kinds) / sizeof(kinds[0]))
_Static_assert(KIND_COUNT <= MAX_KINDS, "the board has a counter for each kind");

struct options options = {
	.memory_bytes = 256ull << 20, .threads = 4, .pace_us = 200, .big_bytes = 2560ull << 20, .directory = "/var/tmp", .seed = 1
};
struct worker *workers;
unsigned worker_count;
static pthread_barrier_t all_started;
static sigset_t served;
static uint64_t end_ns; /* 0: at SIGTERM */

static void *go_on(void *ignored);

uint64_t worker_pages(const struct worker *worker)
{
	uint64_t pages = options.memory_bytes / PAGE_BYTES * worker->kind->share_percent / 100;

	return pages < 64 ? 64 : pages;
}

static void usage(void)
{
	printf("usage: torture [options]\n"
	       "Does to its memory what is hard for a pager, and verifies every byte; exits 1 with one line on the first wrong one.\n\n"
	       "  --memory SIZE      memory to own, with K, M or G (256M)\n"
	       "  --threads N        threads of the kind `threads` (4)\n"
	       "  --seconds N        stop after so long and verify all (0: until SIGTERM)\n"
	       "  --kinds A,B,..     only these kinds (all but big and areas)\n"
	       "  --big[=SIZE]       add the kind big (2560M)\n"
	       "  --areas N          add the kind areas, with N areas\n"
	       "  --pace USEC        rest between two rounds of a thread (200)\n"
	       "  --directory DIR    where the file for O_DIRECT is made; it stays there (/var/tmp)\n"
	       "  --status FILE      written anew on SIGUSR1 and at the end: ok|running|failed and the rounds of each kind\n"
	       "  --seed N           of all random choices (1)\n\n"
	       "Signals: SIGUSR1 writes the status, SIGUSR2 starts the kind spawn, SIGHUP ends the first thread (another takes its part), SIGTERM\n"
	       "verifies everything and ends.\nKinds:\n");
	for (unsigned i = 0; i < KIND_COUNT; i++)
		printf("  %-10s %s\n", kinds[i]->name, kinds[i]->what);
}

static uint64_t parse_size(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 10);
	unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;

	if (end == text || (*end && !shift) || (*end && end[1])) {
		fprintf(stderr, "torture: not a size: %s (example: 256M)\n", text);
		exit(2);
	}
	return value << shift;
}

static void parse_options(int argc, char **argv)
{
	static const struct option names[] = {{"memory", 1, NULL, 'm'},	 {"threads", 1, NULL, 't'},   {"seconds", 1, NULL, 's'},
					      {"kinds", 1, NULL, 'k'},	 {"big", 2, NULL, 'b'},	      {"areas", 1, NULL, 'a'},
					      {"pace", 1, NULL, 'p'},	 {"directory", 1, NULL, 'd'}, {"status", 1, NULL, 'S'},
					      {"seed", 1, NULL, 'r'},	 {"help", 0, NULL, 'h'},      {NULL, 0, NULL, 0}};
	int option;

	while ((option = getopt_long(argc, argv, "h", names, NULL)) != -1)
		switch (option) {
		case 'm': options.memory_bytes = parse_size(optarg); break;
		case 't': options.threads = (unsigned)parse_size(optarg); break;
		case 's': options.seconds = (unsigned)parse_size(optarg); break;
		case 'k': options.kinds = optarg; break;
		case 'b': options.big = true; if (optarg) options.big_bytes = parse_size(optarg); break;
		case 'a': options.areas = (unsigned)parse_size(optarg); break;
		case 'p': options.pace_us = (unsigned)parse_size(optarg); break;
		case 'd': options.directory = optarg; break;
		case 'S': options.status_path = optarg; break;
		case 'r': options.seed = parse_size(optarg); break;
		case 'h': usage(); exit(0);
		default: fprintf(stderr, "torture: see --help\n"); exit(2);
		}
}

static bool kind_wanted(const struct kind *kind)
{
	size_t length = strlen(kind->name);

	if (kind == &kind_big || kind == &kind_areas)
		return kind == &kind_big ? options.big : options.areas;
	if (!options.kinds)
		return true;
	for (const char *at = options.kinds; (at = strstr(at, kind->name)); at += length)
		if ((at == options.kinds || at[-1] == ',') && (at[length] == ',' || at[length] == 0))
			return true;
	return false;
}

static bool workers_add(const struct kind *kind, unsigned kind_index)
{
	unsigned count = kind == &kind_threads ? options.threads : 1;

	for (unsigned i = 0; i < count; i++) {
		struct worker *worker = &workers[worker_count];
		*worker = (struct worker){.kind = kind, .kind_index = kind_index, .number = i,
					  .random = options.seed * 1000003 + worker_count * 7919};
		worker_count++;
		if (!kind->start(worker))
			return false;
	}
	return true;
}

static void *work(void *argument)
{
	struct worker *worker = argument;

	if (!thread_signals_set_up())
		return NULL;
	pthread_barrier_wait(&all_started); /* the kind signals needs every thread's id */
	while (!board->stop) {
		if (!worker->kind->round(worker))
			break;
		worker->round++;
		atomic_fetch_add(&board->rounds[worker->kind_index], 1);
		if (options.pace_us)
			usleep(options.pace_us);
	}
	return NULL;
}

/* Written beside and renamed, so that a reader never sees half of it; open only for the moment (T1). */
static void write_status(const char *word)
{
	char text[1536], path[512];
	int length = snprintf(text, sizeof(text), "%s", word);

	if (!options.status_path)
		return;
	for (unsigned i = 0; i < KIND_COUNT; i++)
		if (kind_wanted(kinds[i]))
			length += snprintf(text + length, sizeof(text) - (size_t)length, " %s=%llu", kinds[i]->name,
					   (unsigned long long)board->rounds[i]);
	length += snprintf(text + length, sizeof(text) - (size_t)length, " handled=%llu errors=%d",
			   (unsigned long long)board->signals, board->failed);
	if (board->skipped[0])
		length += snprintf(text + length, sizeof(text) - (size_t)length, " skipped: %s", board->skipped);
	if (board->failed)
		length += snprintf(text + length, sizeof(text) - (size_t)length, " error: %s", board->error);
	length += snprintf(text + length, sizeof(text) - (size_t)length, "\n");
	snprintf(path, sizeof(path), "%s.new", options.status_path);
	int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
	if (fd < 0)
		return;
	bool whole = write(fd, text, (size_t)length) == length;
	close(fd);
	if (whole)
		rename(path, options.status_path);
}

/* The process goes on without its first thread: by its number it looks as if it had ended. */
static void end_first_thread(void)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, go_on, NULL);

	if (error)
		torture_fail("start a thread: %s", strerror(error));
	else
		pthread_exit(NULL);
}

/* Waits for signals, and grows its own stack in between. */
static void serve_signals(void)
{
	struct worker self = {.kind = &kind_stack, .random = options.seed};
	bool use_stack = kind_wanted(&kind_stack);

	while (!board->stop) {
		struct timespec now, wait = {.tv_nsec = 50 * 1000 * 1000};
		int number = sigtimedwait(&served, NULL, &wait);

		if (number == SIGUSR1)
			write_status(board->failed ? "failed" : "running");
		else if (number == SIGUSR2)
			board->spawn_allowed = 1;
		else if (number == SIGTERM || number == SIGINT)
			return;
		else if (number == SIGHUP && getpid() == gettid())
			end_first_thread();
		else if (use_stack && self.kind->round(&self))
			self.round++;
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (end_ns && (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec >= end_ns)
			return;
	}
}

static void stop_workers(void)
{
	struct timespec limit;

	board->stop = 1;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += STUCK_SECONDS;
	for (unsigned i = 0; i < worker_count; i++)
		if (pthread_timedjoin_np(workers[i].thread, NULL, &limit)) {
			torture_fail("STUCK: a thread of the kind %s (round %llu) does not come back", workers[i].kind->name,
				     (unsigned long long)workers[i].round);
			return;
		}
}

static bool set_up(void)
{
	pthread_rwlockattr_t prefer_fork;
	unsigned most = KIND_COUNT + options.threads;

	pthread_rwlockattr_init(&prefer_fork);
	pthread_rwlockattr_setkind_np(&prefer_fork, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&world, &prefer_fork);
	workers = calloc(most, sizeof(*workers));
	if (!workers || !signals_set_up() || !thread_signals_set_up())
		return false;
	for (unsigned i = 0; i < KIND_COUNT; i++)
		if (kind_wanted(kinds[i]) && !workers_add(kinds[i], i))
			return false;
	return true;
}

static bool start_workers(void)
{
	pthread_attr_t attributes;

	pthread_barrier_init(&all_started, NULL, worker_count);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 8 << 20);
	for (unsigned i = 0; i < worker_count; i++) {
		int error = pthread_create(&workers[i].thread, &attributes, work, &workers[i]);
		if (error)
			return torture_fail("start a thread: %s", strerror(error));
	}
	return true;
}

/* Until the end, which is the program's. */
static void *go_on(void *ignored)
{
	(void)ignored;
	serve_signals();
	stop_workers();
	if (!board->failed)
		regions_check_everything();
	write_status(board->failed ? "failed" : "ok");
	if (board->failed)
		fprintf(stderr, "torture: %s\n", board->error);
	exit(board->failed ? 1 : 0);
}

int main(int argc, char **argv)
{
	struct timespec now;

	parse_options(argc, argv);
	sigemptyset(&served);
	sigaddset(&served, SIGUSR1);
	sigaddset(&served, SIGUSR2);
	sigaddset(&served, SIGHUP);
	sigaddset(&served, SIGTERM);
	sigaddset(&served, SIGINT);
	pthread_sigmask(SIG_BLOCK, &served, NULL);
	if (!board_open()) {
		fprintf(stderr, "torture: shared memory: %s\n", strerror(errno));
		return 2;
	}
	if (!set_up() || !start_workers()) {
		write_status("failed");
		fprintf(stderr, "torture: %s\n", board->error);
		return 1;
	}
	write_status("running");
	clock_gettime(CLOCK_MONOTONIC, &now);
	if (options.seconds)
		end_ns = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec + options.seconds * 1000000000ull;
	go_on(NULL);
}
