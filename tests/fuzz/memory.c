#include "memory.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

static void *shared;
static size_t shared_bytes;

void *__real_mmap64(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t bytes);
void *__wrap_mmap64(void *at, size_t bytes, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t bytes);

static void *make(size_t bytes)
{
	void *memory;

	if (bytes > MEMORY_HEAP_BYTES)
		return __real_mmap64(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (posix_memalign(&memory, 4096, bytes))
		return MAP_FAILED;
	memset(memory, 0, bytes);
	return memory;
}

static void end(void *memory, size_t bytes)
{
	if (bytes > MEMORY_HEAP_BYTES)
		__real_munmap(memory, bytes);
	else
		free(memory);
}

void *__wrap_mmap64(void *at, size_t bytes, int protection, int flags, int fd, off_t offset)
{
	if (at || offset || flags & (MAP_FIXED | MAP_POPULATE))
		return __real_mmap64(at, bytes, protection, flags, fd, offset);
	if (fd < 0)
		return make(bytes);
	if (!shared) {
		shared = make(bytes);
		shared_bytes = bytes;
	}
	assert(bytes == shared_bytes);
	return shared;
}

int __wrap_munmap(void *at, size_t bytes)
{
	if (at != shared)
		end(at, bytes);
	return 0;
}

void *memory_shared(void)
{
	return shared;
}

void memory_forget(void)
{
	if (shared)
		end(shared, shared_bytes);
	shared = NULL;
}
