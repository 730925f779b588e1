/* exclusive: says, 200 times a second, where it runs: a line `NETWORK_NAMESPACE COUNT` appended to FILE. Two copies of one
 * process that never run at once write runs of lines of one place each; `exclusive --check FILE` says whether that is so.
 *
 *   exclusive FILE [MEBIBYTES]    with so much memory besides, each page of which is looked at again and again
 *   exclusive --check FILE        0: no two places took turns; 1: they did. Prints the runs. */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096u
#define LOOKS 64u /* pages a line */

static int check(const char *path)
{
	char place[64], seen[8][64], last[64] = "";
	unsigned long count, lines = 0, runs = 0;
	FILE *file = fopen(path, "r");
	if (!file)
		return 2;
	/* source, destination, source again: three runs are the most that a migration can make */
	while (fscanf(file, "%63s %lu", place, &count) == 2) {
		if (!strcmp(place, last)) {
			lines++;
			continue;
		}
		if (*last)
			printf("%s: %lu lines\n", last, lines);
		strcpy(last, place);
		lines = 1;
		if (runs == 8)
			break;
		strcpy(seen[runs++], place);
	}
	printf("%s: %lu lines\n", last, lines);
	fclose(file);
	return runs == 0 || runs > 3 ? 1 : 0;
}

static void say(int fd, unsigned long count)
{
	char place[64], line[128];
	ssize_t length = readlink("/proc/self/ns/net", place, sizeof(place) - 1);
	if (length < 0)
		_exit(3);
	place[length] = 0;
	int bytes = snprintf(line, sizeof(line), "%s %lu\n", place, count);
	if (write(fd, line, (size_t)bytes) != bytes)
		_exit(4);
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--check"))
		return check(argv[2]);
	if (argc < 2)
		return 2;
	int fd = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
	size_t pages = (argc > 2 ? (size_t)atoi(argv[2]) : 8) * 256;
	uint64_t *memory = malloc(pages * PAGE);
	if (fd < 0 || !memory)
		return 3;
	for (size_t i = 0; i < pages; i++)
		memory[i * PAGE / 8] = i * 3 + 1;
	for (unsigned long count = 0;; count++) {
		for (unsigned i = 0; i < LOOKS; i++) {
			size_t page = (count * LOOKS + i) % pages;
			if (memory[page * PAGE / 8] != page * 3 + 1)
				_exit(5);
		}
		say(fd, count);
		nanosleep(&(struct timespec){ .tv_nsec = 5000000 }, NULL);
	}
}
