/* areas: a process with memory of every kind that a fork, or a page read from outside, treats in a way of its own: not forked,
 * wiped on fork, not readable, locked, write-protected, never touched. Each page has a pattern. At SIGUSR1 it looks at all of it
 * and writes `good`, or what is wrong, into the file named on the command line (made beside it, and renamed). At SIGUSR2 the
 * write-protected area becomes one that is not forked, or is no more, and the same is written. Ends at SIGTERM. */
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES 64u

enum kind { PLAIN, NOT_FORKED, WIPED, HIDDEN, LOCKED, PROTECTED, UNTOUCHED, SPARSE, KINDS };
static const char *const names[KINDS] = { "plain", "not forked", "wiped on fork", "hidden", "locked", "protected", "untouched", "sparse" };
static unsigned char *areas[KINDS];

/* Of page `page` of an area: 0 for one that was never written. */
static unsigned char pattern_of(enum kind kind, unsigned page)
{
	if (kind == UNTOUCHED || (kind == SPARSE && page % 3))
		return 0;
	return (unsigned char)(1 + (kind * 41 + page * 7) % 255);
}

static void make(enum kind kind)
{
	unsigned char *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (area == MAP_FAILED)
		abort();
	areas[kind] = area;
	for (unsigned page = 0; page < PAGES; page++)
		if (pattern_of(kind, page))
			memset(area + page * PAGE, pattern_of(kind, page), PAGE);
	int failed = 0;
	switch (kind) {
	case NOT_FORKED:
		failed = madvise(area, PAGES * PAGE, MADV_DONTFORK);
		break;
	case WIPED:
		failed = madvise(area, PAGES * PAGE, MADV_WIPEONFORK);
		break;
	case HIDDEN:
		failed = mprotect(area, PAGES * PAGE, PROT_NONE);
		break;
	case LOCKED:
		failed = mlock(area, 8 * PAGE); /* the least that a user may */
		break;
	case PROTECTED:
		failed = mprotect(area, PAGES * PAGE, PROT_READ);
		break;
	default:
		break;
	}
	if (failed)
		abort();
}

/* Says in `file` what is wrong with an area. */
static bool good(enum kind kind, FILE *file)
{
	bool same = true;
	if (kind == HIDDEN)
		mprotect(areas[kind], PAGES * PAGE, PROT_READ);
	for (unsigned i = 0; i < PAGES * PAGE && same; i++) {
		same = areas[kind][i] == pattern_of(kind, i / PAGE);
		if (!same)
			fprintf(file, "bad: %s, at %p, page %u, byte %u: %u instead of %u\n", names[kind], (void *)(areas[kind] + i),
				i / PAGE, i % PAGE, areas[kind][i], pattern_of(kind, i / PAGE));
	}
	if (kind == HIDDEN)
		mprotect(areas[kind], PAGES * PAGE, PROT_NONE);
	return same;
}

static void report(const char *path)
{
	char beside[4096];
	snprintf(beside, sizeof(beside), "%s.new", path);
	FILE *file = fopen(beside, "w");
	if (!file)
		return;
	bool all = true;
	for (enum kind kind = 0; kind < KINDS; kind++)
		all = good(kind, file) && all;
	if (all)
		fprintf(file, "good\n");
	fclose(file);
	rename(beside, path);
}

int main(int argc, char **argv)
{
	sigset_t set;
	int number;
	if (argc != 2) {
		fprintf(stderr, "usage: areas FILE\n");
		return 2;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	for (enum kind kind = 0; kind < KINDS; kind++)
		make(kind);
	report(argv[1]);
	for (bool forked = true; sigwait(&set, &number) == 0 && number != SIGTERM; report(argv[1])) {
		if (number != SIGUSR2)
			continue;
		forked = !forked;
		madvise(areas[PROTECTED], PAGES * PAGE, forked ? MADV_DOFORK : MADV_DONTFORK);
	}
	return 0;
}
