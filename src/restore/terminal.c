#include "restore/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>

#include "base/base.h"

int terminal_open(struct terminal *terminal, int *slave_fd, struct dp_err *err)
{
	*terminal = (struct terminal){ .master_fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC) };
	int unlock = 0;
	if (terminal->master_fd < 0 || ioctl(terminal->master_fd, TIOCSPTLCK, &unlock))
		return dp_fail_errno(err, errno, "make a terminal");
	*slave_fd = ioctl(terminal->master_fd, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*slave_fd < 0)
		return dp_fail_errno(err, errno, "open the other end of a terminal");
	terminal_resize(terminal);
	return 0;
}

void terminal_start(struct terminal *terminal)
{
	struct termios raw;
	terminal_resize(terminal); /* CRIU has set the one it had */
	if (tcgetattr(0, &terminal->before))
		return;
	raw = terminal->before;
	cfmakeraw(&raw);
	terminal->raw = !tcsetattr(0, TCSADRAIN, &raw);
}

void terminal_resize(const struct terminal *terminal)
{
	struct winsize size;
	if (terminal->master_fd >= 0 && !ioctl(0, TIOCGWINSZ, &size))
		ioctl(terminal->master_fd, TIOCSWINSZ, &size);
}

static bool copy(int from, int to)
{
	char buffer[4096];
	ssize_t got = read(from, buffer, sizeof(buffer));
	if (got < 0 && errno == EINTR)
		return true;
	return got > 0 && !io_write_full(to, buffer, (size_t)got);
}

bool terminal_copy_in(const struct terminal *terminal)
{
	return copy(0, terminal->master_fd);
}

bool terminal_copy_out(const struct terminal *terminal)
{
	return copy(terminal->master_fd, 1);
}

void terminal_done(struct terminal *terminal)
{
	if (terminal->master_fd < 0)
		return;
	for (;;) {
		struct pollfd left = { .fd = terminal->master_fd, .events = POLLIN };
		if (poll(&left, 1, 0) <= 0 || !(left.revents & POLLIN) || !terminal_copy_out(terminal))
			break;
	}
	if (terminal->raw)
		tcsetattr(0, TCSADRAIN, &terminal->before);
	close(terminal->master_fd);
	terminal->master_fd = -1;
}
