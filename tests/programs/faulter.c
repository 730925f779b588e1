/* faulter THREADS [FILE]: threads that live on faults: each reads a page it may not read, again and again, and its handler opens
 * the page. So at any moment some thread has a SIGSEGV that was raised and not yet delivered, which is when it must not be
 * stopped, given other code and let go carelessly. In between they read 16 MiB that are what they were. Goes on until SIGTERM;
 * FILE gets "running", and in the end "ok" if no fault was lost, came twice, or at another place, and no byte was wrong. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define STACK_BYTES 65536
#define BALLAST_PAGES 4096

static atomic_bool ending;
static atomic_uint_fast64_t faults;
static uint64_t *ballast;
static __thread volatile uint8_t *expected;
static __thread volatile uint64_t handled;

static void wrong(const char *what)
{
	(void)!write(2, what, strlen(what));
	_exit(1);
}

static void check_ballast(uint64_t number)
{
	if (ballast[number * PAGE_BYTES / 8] != number + 1)
		wrong("faulter: a wrong byte in memory that nobody changes\n");
}

static void on_fault(int number, siginfo_t *info, void *context __attribute__((unused)))
{
	if (number != SIGSEGV || info->si_addr != (void *)expected || info->si_code != SEGV_ACCERR)
		wrong("faulter: a fault that is none of ours\n");
	handled++;
	if (mprotect((void *)expected, PAGE_BYTES, PROT_READ | PROT_WRITE))
		wrong("faulter: mprotect failed in the handler\n");
}

static void *run(void *argument)
{
	stack_t stack = { .ss_size = STACK_BYTES, .ss_sp = malloc(STACK_BYTES) };
	volatile uint8_t *page = argument;
	uint64_t rounds = 0;
	if (!stack.ss_sp || sigaltstack(&stack, NULL))
		wrong("faulter: no signal stack\n");
	for (expected = page; !ending; rounds++) {
		if (mprotect((void *)page, PAGE_BYTES, PROT_NONE))
			wrong("faulter: mprotect failed\n");
		if (*page != (uint8_t)(uintptr_t)page[1])
			wrong("faulter: a wrong byte\n");
		if (handled != rounds + 1)
			wrong("faulter: a fault was lost, or came twice\n");
		atomic_fetch_add(&faults, 1);
		if (rounds % 64 == 0)
			check_ballast((rounds / 64 * 7 + page[0] * 1000u) % BALLAST_PAGES);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	int threads = argc > 1 ? atoi(argv[1]) : 4, number;
	sigset_t ends;
	sigemptyset(&ends);
	sigaddset(&ends, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &ends, NULL);
	pthread_t thread[64];
	if (threads < 1 || threads > 64 || sigaction(SIGSEGV, &action, NULL))
		return 2;
	ballast = mmap(NULL, BALLAST_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ballast == MAP_FAILED)
		return 2;
	for (uint64_t i = 0; i < BALLAST_PAGES; i++)
		ballast[i * PAGE_BYTES / 8] = i + 1;
	for (int i = 0; i < threads; i++) {
		uint8_t *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (page == MAP_FAILED)
			return 2;
		page[0] = page[1] = (uint8_t)(i + 1);
		if (pthread_create(&thread[i], NULL, run, page))
			return 2;
	}
	if (argc > 2) {
		FILE *file = fopen(argv[2], "w");
		if (!file || fputs("running\n", file) < 0 || fclose(file))
			return 2;
	}
	sigwait(&ends, &number);
	ending = true;
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	for (uint64_t i = 0; i < BALLAST_PAGES; i++)
		check_ballast(i);
	if (argc > 2) {
		FILE *file = fopen(argv[2], "w");
		if (!file || fprintf(file, "ok %llu\n", (unsigned long long)faults) < 0 || fclose(file))
			return 2;
	}
	return 0;
}
