/* patterns MEGABYTES RESULT: memory in which every page says which one it is. At first, and on each SIGUSR1, all of it is read,
 * and a line is added to the file RESULT: "good N wrong N bus N: PAGE PAGE ...", the pages at which a bus error came. Pages begin
 * with PATTERN and their number, 8 bytes each, so that a test finds them in a store. On SIGUSR2 every page is written anew
 * (version + 1). */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096u

static sigjmp_buf after_bus;
static volatile sig_atomic_t expecting;

static void on_bus(int signal, siginfo_t *info, void *context)
{
	if (!expecting)
		abort();
	siglongjmp(after_bus, 1);
}

static void fill(uint8_t *page, uint64_t number, uint64_t version)
{
	uint64_t *words = (uint64_t *)page;

	memcpy(page, "PATTERN1", 8);
	for (unsigned i = 1; i < PAGE / 8; i++)
		words[i] = i == 1 ? number : i == 2 ? version : (number * 512 + i) * 0x9e3779b97f4a7c15u ^ version << 40;
}

static void check_all(const uint8_t *memory, uint64_t pages, uint64_t version, const char *path)
{
	static volatile uint64_t good, wrong, bus, number;
	static uint8_t expected[PAGE];
	char list[4096] = "";

	good = wrong = bus = 0;
	expecting = 1;
	for (number = 0; number < pages; number++) {
		if (sigsetjmp(after_bus, 1)) {
			if (bus++ < 100)
				snprintf(list + strlen(list), sizeof(list) - strlen(list), " %llu", (unsigned long long)number);
			continue;
		}
		fill(expected, number, version);
		if (memcmp(memory + number * PAGE, expected, PAGE) == 0)
			good++;
		else
			wrong++;
	}
	expecting = 0;
	FILE *file = fopen(path, "a");

	if (!file)
		abort();
	fprintf(file, "good %llu wrong %llu bus %llu:%s\n", (unsigned long long)good, (unsigned long long)wrong,
		(unsigned long long)bus, list);
	fclose(file);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_bus, .sa_flags = SA_SIGINFO };
	uint64_t pages = argc == 3 ? strtoull(argv[1], NULL, 10) * 256 : 0, version = 1;
	uint8_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	sigset_t wanted;
	int signal;

	if (!pages || memory == MAP_FAILED) {
		fprintf(stderr, "usage: patterns MEGABYTES RESULT\n");
		return 2;
	}
	sigaction(SIGBUS, &action, NULL);
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGUSR1);
	sigaddset(&wanted, SIGUSR2);
	sigprocmask(SIG_BLOCK, &wanted, NULL);
	for (uint64_t number = 0; number < pages; number++)
		fill(memory + number * PAGE, number, version);
	check_all(memory, pages, version, argv[2]);
	while (sigwait(&wanted, &signal) == 0) {
		if (signal == SIGUSR1) {
			check_all(memory, pages, version, argv[2]);
			continue;
		}
		version++;
		for (uint64_t number = 0; number < pages; number++)
			fill(memory + number * PAGE, number, version);
	}
	return 1;
}
