/* A lease as init keeps it: what is below the caller stands still past its end, and goes on when it is renewed. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include <cmocka.h>

#include "base/base.h"
#include "restore/lease.h"
#include "sys/proc.h"

static uint64_t now_ns(void)
{
	struct timespec clock;
	clock_gettime(CLOCK_BOOTTIME, &clock);
	return (uint64_t)clock.tv_sec * 1000000000u + (uint64_t)clock.tv_nsec;
}

/* A child that has a child of its own, each spinning. */
static pid_t start_family(void)
{
	int ready[2];
	assert_int_equal(pipe(ready), 0);
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (fork() == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			io_write_full(ready[1], "", 1);
		}
		for (;;)
			usleep(1000);
	}
	char byte;
	assert_int_equal(io_read_full(ready[0], &byte, 1), 0);
	close(ready[0]);
	close(ready[1]);
	return child;
}

static unsigned count_stopped(void)
{
	cleanup_free pid_t *pids = NULL;
	unsigned stopped = 0;
	ssize_t count = proc_tree(getpid(), &pids);
	for (ssize_t i = 1; i < count; i++)
		stopped += proc_state(pids[i]) == 'T';
	return stopped;
}

static void wait_for_stopped(unsigned wanted)
{
	for (unsigned i = 0; i < 10000 && count_stopped() != wanted; i++)
		usleep(1000);
	assert_int_equal(count_stopped(), wanted);
}

static void lease__over_renewed_and_for_ever__stops_and_lets_go(void **state)
{
	(void)state;
	struct restore_lease lease = { LEASE_NONE_YET };
	bool stopped = false;
	pid_t child = start_family();
	assert_true(lease_follow(&lease, LEASE_CHILDREN, 0, &stopped) > 0); /* nobody has given one: not for us to stop */
	assert_false(stopped);
	atomic_store(&lease.until_ns, now_ns() + UINT64_C(3600000000000));
	assert_in_range(lease_follow(&lease, LEASE_CHILDREN, 0, &stopped), 1, 1000);
	assert_int_equal(count_stopped(), 0);
	atomic_store(&lease.until_ns, now_ns());
	assert_true(lease_follow(&lease, LEASE_CHILDREN, 0, &stopped) > 0);
	assert_true(stopped);
	wait_for_stopped(2);
	atomic_store(&lease.until_ns, now_ns() + UINT64_C(3600000000000));
	lease_follow(&lease, LEASE_CHILDREN, 0, &stopped);
	assert_false(stopped);
	wait_for_stopped(0);
	atomic_store(&lease.until_ns, LEASE_FOR_EVER);
	assert_int_equal(lease_follow(&lease, LEASE_CHILDREN, 0, &stopped), -1);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

static void lease__none__never_looked_at_again(void **state)
{
	(void)state;
	bool stopped = false;
	assert_int_equal(lease_follow(NULL, LEASE_CHILDREN, 0, &stopped), -1);
	assert_false(stopped);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lease__over_renewed_and_for_ever__stops_and_lets_go),
		cmocka_unit_test(lease__none__never_looked_at_again),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
