/* Runs a fuzz target over a corpus, without a fuzzer: usage: replay-NAME FILE-OR-DIRECTORY... */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned inputs;

static int replay_file(const char *path)
{
	char *content;
	ssize_t bytes = io_read_file(path, &content, 16 << 20);

	if (bytes < 0) {
		fprintf(stderr, "%s: %s\n", path, strerror((int)-bytes));
		return 1;
	}
	/* A copy of just this size, so that a sanitizer sees a read beyond it. Cut short as well: half an input is an input. */
	for (unsigned part = 1; part <= 4; part++) {
		size_t size = (size_t)bytes * part / 4;
		uint8_t *exact = malloc(size ? size : 1);

		memcpy(exact, content, size);
		LLVMFuzzerTestOneInput(exact, size);
		free(exact);
	}
	free(content);
	inputs++;
	return 0;
}

int main(int argc, char **argv)
{
	int failed = 0;

	for (int i = 1; i < argc; i++) {
		DIR *directory = opendir(argv[i]);
		const struct dirent *entry;

		if (!directory) {
			failed |= replay_file(argv[i]);
			continue;
		}
		while ((entry = readdir(directory))) {
			char path[4096];
			struct stat status;

			snprintf(path, sizeof(path), "%s/%s", argv[i], entry->d_name);
			if (stat(path, &status) == 0 && S_ISREG(status.st_mode))
				failed |= replay_file(path);
		}
		closedir(directory);
	}
	printf("%u inputs\n", inputs);
	return failed || !inputs;
}
