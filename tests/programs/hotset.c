/* hotset: a process whose hot pages are known. It owns a region of patterned memory, of which a share is hot: pages picked by a
 * fixed rule, scattered over it, that get most of the touches; the others get the rest, evenly.
 *
 *   hotset --memory 64M --hot 20 --share 95 --rate 200000 --status FILE
 * On SIGUSR1 it writes FILE: `region START PAGES touches N`, then one character a page, 1 for hot and 0 for cold. Every touch
 * checks a word of the page's pattern, and some write to it; the first wrong one is told in FILE and ends it with 1. */
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define BATCH 64u

static uint64_t *memory;
static uint64_t pages, hot_pages, touches;
static uint32_t *hot, *cold; /* page numbers */
static uint8_t *is_hot;
static const char *status_path;
static volatile sig_atomic_t asked;

static uint64_t state = 88172645463325252ull;
static uint64_t next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	return state ^= state << 17;
}

static void on_signal(int number)
{
	(void)number;
	asked = 1;
}

static void write_status(const char *wrong)
{
	char temporary[512];
	snprintf(temporary, sizeof(temporary), "%s.new", status_path);
	FILE *file = fopen(temporary, "we");
	if (!file)
		_exit(2);
	fprintf(file, "%s %lu %lu touches %lu\n", wrong ? wrong : "region", (unsigned long)(uintptr_t)memory, pages, touches);
	for (uint64_t i = 0; i < pages; i++)
		fputc(is_hot[i] ? '1' : '0', file);
	fputc('\n', file);
	fclose(file);
	rename(temporary, status_path);
}

static void touch(uint32_t page)
{
	uint64_t *word = memory + (uint64_t)page * (PAGE / 8) + (touches & 7);
	if (*word >> 32 != page + 1u) {
		write_status("wrong");
		_exit(1);
	}
	if (touches % 16 == 0)
		++*word; /* the lower half counts */
	touches++;
}

static void prepare(uint64_t bytes, unsigned hot_percent)
{
	pages = bytes / PAGE;
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	hot = calloc(pages, sizeof(*hot));
	cold = calloc(pages, sizeof(*cold));
	is_hot = calloc(pages, 1);
	if (memory == MAP_FAILED || !hot || !cold || !is_hot)
		exit(2);
	for (uint64_t i = 0; i < pages; i++) {
		is_hot[i] = next_random() % 100 < hot_percent;
		if (is_hot[i])
			hot[hot_pages++] = (uint32_t)i;
		else
			cold[i - hot_pages] = (uint32_t)i;
		for (unsigned word = 0; word < PAGE / 8; word++)
			memory[i * (PAGE / 8) + word] = (i + 1) << 32 | (next_random() & 0xffff);
	}
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "memory", required_argument, NULL, 'm' }, { "hot", required_argument, NULL, 'h' },
		{ "share", required_argument, NULL, 's' },  { "rate", required_argument, NULL, 'r' },
		{ "status", required_argument, NULL, 'f' }, { 0 },
	};
	uint64_t megabytes = 64, rate = 200000;
	unsigned hot_percent = 20, share = 95;
	for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		switch (option) {
		case 'm': megabytes = strtoull(optarg, NULL, 10); break;
		case 'h': hot_percent = (unsigned)atoi(optarg); break;
		case 's': share = (unsigned)atoi(optarg); break;
		case 'r': rate = strtoull(optarg, NULL, 10); break;
		case 'f': status_path = optarg; break;
		default: return 2;
		}
	}
	if (!status_path || !megabytes || !rate)
		return 2;
	prepare(megabytes << 20, hot_percent);
	signal(SIGUSR1, on_signal);
	write_status(NULL);
	struct timespec due;
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (;;) {
		for (unsigned i = 0; i < BATCH; i++)
			touch(next_random() % 100 < share ? hot[next_random() % hot_pages]
							  : cold[next_random() % (pages - hot_pages)]);
		if (asked) {
			asked = 0;
			write_status(NULL);
		}
		struct timespec now;
		clock_gettime(CLOCK_MONOTONIC, &now);
		uint64_t next = (uint64_t)due.tv_nsec + BATCH * 1000000000ull / rate;
		due = (struct timespec){ due.tv_sec + (time_t)(next / 1000000000u), (long)(next % 1000000000u) };
		if (now.tv_sec > due.tv_sec + 1)
			due = now; /* it was late, or asleep in a snapshot: what was missed is not made up for */
		else
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	}
}
