/* What is known of memory areas from before a freeze: which of it may be used, and what the proof afterwards finds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "base/base.h"
#include "migrate/area_flags.h"
#include "migrate/hide/known.h"

#define HEAP "VmFlags: rd wr mr mw me ac sd \n"
#define LOCKED "VmFlags: rd wr mr mw me lo ac sd \n"
#define CODE "VmFlags: rd ex mr mw me sd \n"

static const char before[] = "= 7\n"
			     "1000-3000 rw-p 00000000 00:00 0                                  [heap]\n" LOCKED
			     "= 12\n"
			     "1000-3000 rw-p 00000000 00:00 0                                  [heap]\n" HEAP
			     "5000-7000 rw-p 00000000 00:00 0 \n" LOCKED
			     "7000-9000 rw-p 00000000 00:00 0 \n" HEAP
			     "a000-c000 r-xp 00001000 08:01 55                                 /bin/true\n" CODE;

static void known__same_areas__flags_of_that_task(void **state)
{
	(void)state;
	char *text = known_smaps(before, 12, "1000-3000 rw-p 00000000 00:00 0                                  [heap]\n"
					     "5000-7000 rw-p 00000000 00:00 0 \n"
					     "a000-c000 r-xp 00001000 08:01 55                                 /bin/true\n");
	assert_string_equal(text, "1000-3000 rw-p 00000000 00:00 0                                  [heap]\n" HEAP
				  "5000-7000 rw-p 00000000 00:00 0 \n" LOCKED
				  "a000-c000 r-xp 00001000 08:01 55                                 /bin/true\n" CODE);
	free(text);
}

static void known__an_area_grew_or_was_split__flags_of_what_it_overlaps(void **state)
{
	(void)state;
	char *text = known_smaps(before, 12, "1000-4000 rw-p 00000000 00:00 0                                  [heap]\n"
					     "7000-8000 rw-p 00000000 00:00 0 \n"
					     "8000-a000 rw-p 00000000 00:00 0 \n"
					     "b000-c000 r-xp 00002000 08:01 55                                 /bin/true\n");
	assert_non_null(text);
	assert_non_null(strstr(text, "[heap]\n" HEAP "7000-8000 rw-p 00000000 00:00 0 \n" HEAP "8000-a000 rw-p 00000000 00:00 0 \n" HEAP
				     "b000"));
	free(text);
}

static void refuses(const char *maps)
{
	assert_null(known_smaps(before, 12, maps));
}

static void known__what_was_not_there_before__nothing_is_known(void **state)
{
	(void)state;
	refuses("3000-4000 rw-p 00000000 00:00 0 \n");                                  /* new */
	refuses("1000-2000 r--p 00000000 00:00 0 \n");                                  /* other rights */
	refuses("a000-c000 r-xp 00001000 08:01 56                    /bin/false\n");    /* another file */
	refuses("a000-c000 r-xp 00002000 08:01 55                    /bin/true\n");     /* another place of it */
	refuses("6000-8000 rw-p 00000000 00:00 0 \n");                                  /* of two kinds */
	refuses("1000-2000 rw-p 00000000 00:00 0");                                     /* cut off */
	assert_null(known_smaps(before, 13, "1000-2000 rw-p 00000000 00:00 0 \n"));
	assert_null(known_smaps("= 12\n1000-3000 rw-p 00000000 00:00 0 \nRss: 4 kB\n", 12, "1000-2000 rw-p 00000000 00:00 0 \n"));
}

/* ---- the proof ---- */

static int file_of(const char *text)
{
	int fd = memfd_create("text", MFD_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	return fd;
}

static int same(const char *now, const char *known, bool shadow)
{
	int smaps = file_of(now), other = file_of(known);
	int result = area_flags_same(smaps, other, shadow);
	close(smaps);
	close(other);
	return result;
}

#define AREA "1000-3000 rw-p 00000000 00:00 0 \n"
#define COUNTS "Size: 8 kB\nRss: 4 kB\nTHPeligible: 0\n"

static void proof__only_counts_and_soft_dirty_differ__is_the_same(void **state)
{
	(void)state;
	assert_int_equal(same(AREA COUNTS "VmFlags: rd wr mr sd \n", AREA "VmFlags: rd wr mr \n", false), 1);
	assert_int_equal(same("", "", false), 1);
}

static void proof__a_flag_or_an_area_differs__is_not(void **state)
{
	(void)state;
	assert_int_equal(same(AREA COUNTS "VmFlags: rd wr mr lo \n", AREA "VmFlags: rd wr mr \n", false), 0);
	assert_int_equal(same(AREA COUNTS "VmFlags: rd wr \n", AREA "VmFlags: rd wr dc \n", false), 0);
	assert_int_equal(same("", AREA "VmFlags: rd wr \n", false), 0);
	assert_int_equal(same(AREA COUNTS "VmFlags: rd wr \n", "", false), 0);
	assert_int_equal(same("1000-4000 rw-p 00000000 00:00 0 \nVmFlags: rd wr \n", AREA "VmFlags: rd wr \n", false), 0);
	assert_int_equal(same(AREA COUNTS, AREA "VmFlags: rd wr \n", false), -EIO);
}

static void proof__of_a_fork__lacks_locks_and_what_is_not_for_forks(void **state)
{
	(void)state;
	const char *known = AREA "VmFlags: rd wr lo \n" "4000-5000 rw-p 00000000 00:00 0 \nVmFlags: rd wr dc \n";
	assert_int_equal(same(AREA COUNTS "VmFlags: rd wr \n", known, true), 1);
	assert_int_equal(same(AREA COUNTS "VmFlags: rd wr \n", known, false), 0);
	assert_int_equal(same("", AREA "VmFlags: rd wr \n", true), 0); /* it became one that is not for forks */
}

/* Changes the kind of an area when it is told to; allocates nothing meanwhile. */
static pid_t start_child(int orders_fd, int answers_fd)
{
	void *area = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(area != MAP_FAILED && mprotect((char *)area + 4096, 4096, PROT_READ) == 0); /* it is merged with nothing */
	pid_t child = fork();
	char byte = 0;
	while (child == 0) {
		if (write(answers_fd, &byte, 1) != 1 || read(orders_fd, &byte, 1) != 1 ||
		    madvise((char *)area + 4096, 4096, MADV_DONTFORK))
			_exit(1);
	}
	munmap(area, 3 * 4096);
	return child;
}

static char *read_of(pid_t pid, const char *name)
{
	char path[64], *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	assert_true(io_read_file(path, &text, 1 << 24) > 0);
	return text;
}

static void process__a_flag_changed_since__is_found(void **state)
{
	(void)state;
	int orders[2], answers[2];
	char byte, name[64];
	assert_int_equal(pipe(orders) | pipe(answers), 0);
	pid_t child = start_child(orders[0], answers[1]);
	assert_int_equal(read(answers[0], &byte, 1), 1);
	int fd = area_flags_read(child), told;
	assert_true(fd >= 0);
	snprintf(name, sizeof(name), "fd/%d", fd);
	char *before_it = read_of(getpid(), name), *maps = read_of(child, "maps");
	char *known = known_smaps(before_it, child, maps);
	assert_non_null(known);
	assert_null(strstr(known, "Rss"));
	snprintf(name, sizeof(name), "/proc/%d/smaps", (int)child);
	for (int expected = 1; expected >= 0; expected--) {
		int smaps = open(name, O_RDONLY | O_CLOEXEC);
		told = file_of(known);
		assert_int_equal(area_flags_same(smaps, told, false), expected);
		close(smaps);
		close(told);
		assert_true(write(orders[1], "", 1) == 1 && read(answers[0], &byte, 1) == 1);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	close(fd);
	for (int i = 0; i < 2; i++) {
		close(orders[i]);
		close(answers[i]);
	}
	free(known);
	free(before_it);
	free(maps);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(known__same_areas__flags_of_that_task),
		cmocka_unit_test(known__an_area_grew_or_was_split__flags_of_what_it_overlaps),
		cmocka_unit_test(known__what_was_not_there_before__nothing_is_known),
		cmocka_unit_test(proof__only_counts_and_soft_dirty_differ__is_the_same),
		cmocka_unit_test(proof__a_flag_or_an_area_differs__is_not),
		cmocka_unit_test(proof__of_a_fork__lacks_locks_and_what_is_not_for_forks),
		cmocka_unit_test(process__a_flag_changed_since__is_found),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
