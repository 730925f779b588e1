#include "torture.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

struct board *board;

bool board_open(void)
{
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return board != MAP_FAILED;
}

bool torture_fail(const char *format, ...)
{
	va_list args;

	if (!atomic_exchange(&board->failed, 1)) {
		va_start(args, format);
		vsnprintf(board->error, sizeof(board->error), format, args);
		va_end(args);
	}
	atomic_store(&board->stop, 1);
	return false;
}

bool child_wait(int pid, const char *what)
{
	int status, got;

	if (pid < 0)
		return torture_fail("%s: fork: %s", what, strerror(errno));
	do
		got = waitpid(pid, &status, 0);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return torture_fail("%s: wait for child %d: %s", what, pid, strerror(errno));
	if (WIFSIGNALED(status))
		return torture_fail("%s: child %d was ended by signal %d", what, pid, WTERMSIG(status));
	if (WEXITSTATUS(status))
		return torture_fail("%s: child %d exited with %d", what, pid, WEXITSTATUS(status));
	return true;
}
