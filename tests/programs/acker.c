/* acker THREADS FILE: threads that write to memory and, when a write is made, say so in FILE: what a pool must have then, if
 * writes are in it before the process goes on. Each thread has 16 pages, and writes its count to one after the other: by itself,
 * by a system call, or by an instruction that repeats. FILE: a page, of which each thread has a word, the last count that it has
 * written; the word behind theirs is the address of the first page. */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "acker.h"

#define BALLAST_BYTES (24u << 20)

static uint8_t *pages;
static int file;

static void say(unsigned long word, uint64_t value)
{
	if (pwrite(file, &value, sizeof(value), (off_t)(word * sizeof(value))) != (ssize_t)sizeof(value))
		_exit(1);
}

static void write_repeating(uint64_t *to, uint64_t value, uint64_t count)
{
#if defined(__x86_64__)
	__asm__ volatile("rep stosq" : "+D"(to), "+c"(count) : "a"(value) : "memory");
#else
	for (uint64_t i = 0; i < count; i++)
		((volatile uint64_t *)to)[i] = value;
#endif
}

static void write_count(int *pipe_fds, uint64_t *to, uint64_t count)
{
	switch (count % 7) {
	case 0: write_repeating(to, count, ACKER_WORDS); return;
	case 1:
		if (write(pipe_fds[1], &count, sizeof(count)) != (ssize_t)sizeof(count) ||
		    read(pipe_fds[0], to, sizeof(count)) != (ssize_t)sizeof(count))
			_exit(1);
		return;
	default: *(volatile uint64_t *)to = count;
	}
}

static void *run(void *context)
{
	unsigned long number = (unsigned long)context;
	int pipe_fds[2];
	if (pipe(pipe_fds))
		_exit(1);
	for (uint64_t count = 1;; count++) {
		write_count(pipe_fds, (uint64_t *)(pages + acker_page(number, count) * 4096), count);
		say(number, count);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned long threads = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
	pthread_t thread;
	if (threads < 1 || threads > ACKER_THREADS || (file = open_acks(argv[2])) < 0) {
		fprintf(stderr, "usage: acker THREADS FILE\n");
		return 2;
	}
	pages = mmap(NULL, BALLAST_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (pages == MAP_FAILED || ftruncate(file, 4096))
		return 1;
	for (size_t at = 0; at < BALLAST_BYTES; at += 4096)
		pages[at + 4095] = (uint8_t)(at >> 12) | 1;
	for (unsigned long i = 0; i < threads; i++)
		if (pthread_create(&thread, NULL, run, (void *)i))
			return 1;
	say(ACKER_THREADS, (uint64_t)(uintptr_t)pages);
	pthread_join(thread, NULL);
	return 0;
}
