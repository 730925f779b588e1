/* terminal: a pseudo-terminal for a tree restored in the foreground with --shell-job.
 *
 * The tree gets a terminal of its own, of whose session init is the leader; the caller copies bytes between it and its own
 * terminal, which is in raw mode meanwhile. So job control works inside, and the caller's shell keeps its terminal.
 * Thread rule: the caller's only thread. */
#ifndef DP_RESTORE_TERMINAL_H
#define DP_RESTORE_TERMINAL_H

#include <stdbool.h>
#include <termios.h>

#include "base/err.h"

struct terminal {
	int master_fd;         /* -1: there is none */
	bool raw;              /* `before` is to be set again */
	struct termios before;
};

/* Makes the pair, with the size of the caller's terminal (fd 0). *slave_fd is for the tree. 0 or -errno. */
int terminal_open(struct terminal *terminal, int *slave_fd, struct dp_err *err);
/* The caller's terminal goes raw: keys reach the tree as they are. */
void terminal_start(struct terminal *terminal);
/* Takes the size of the caller's terminal over: after SIGWINCH. */
void terminal_resize(const struct terminal *terminal);
/* Copies what there is, one way each. `false`: that way has ended. Both may block where the reader is slow. */
bool terminal_copy_in(const struct terminal *terminal);
bool terminal_copy_out(const struct terminal *terminal);
/* Copies out what is left, and gives the caller's terminal back as it was. */
void terminal_done(struct terminal *terminal);

#endif
