#include "descriptors.h"

#include <assert.h>

#define FIRST 0x40000000
#define LIMIT 4096

static bool is_open[LIMIT];
static int opened, still_open;

int descriptor_open(void)
{
	assert(opened < LIMIT);
	is_open[opened] = true;
	still_open++;
	return FIRST + opened++;
}

bool descriptor_is(int fd)
{
	return fd >= FIRST;
}

void descriptor_check(int fd)
{
	assert(fd >= FIRST && fd < FIRST + opened && is_open[fd - FIRST]);
}

void descriptors_forget(void)
{
	assert(still_open == 0);
	opened = 0;
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd)
{
	if (!descriptor_is(fd))
		return __real_close(fd);
	descriptor_check(fd);
	is_open[fd - FIRST] = false;
	still_open--;
	return 0;
}
