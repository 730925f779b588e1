/* inject: runs system calls in another process, one thread of it stopped by ptrace (ptrace(2), PTRACE_SEIZE). x86-64.
 *
 * How it works: the thread is seized and interrupted, its registers, signal mask and pending system call are kept, and a
 * `syscall` instruction of its vDSO is stepped over with registers of our choice; inject_leave puts everything back, so that
 * an interrupted system call is restarted as after a signal. The other threads run on.
 * A thread that waits inside the kernel for a page cannot stop before it got the page: so inject_begin only asks, and
 * inject_stopped tells (without blocking) when the thread has come to rest; the caller serves faults in between.
 *
 * Thread rule: the thread that began is the tracer and must make all further calls. Where the target has a seccomp filter, it
 * is suspended while the thread is traced (PTRACE_O_SUSPEND_SECCOMP needs CAP_SYS_ADMIN). */
#ifndef DP_SYS_INJECT_H
#define DP_SYS_INJECT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "base/err.h"

struct injection {
	pid_t thread;
	uint64_t syscall_instruction; /* address in the target */
	struct user_regs_struct saved;
	uint64_t saved_mask;
	bool at_rest;        /* has stopped, but perhaps cannot run calls yet */
	bool stopped;
	bool owes_trap;      /* somebody sent it a SIGTRAP meanwhile */
	uint64_t needs_page; /* address of a page that must be there before calls can be run; 0: none */
};

/* Asks a thread to stop. -EPERM: somebody else traces it, or no right to; -ESRCH. Does not block. */
int inject_begin(struct injection *injection, pid_t thread, struct dp_err *err);
/* 1: stopped and ready for calls; 0: not yet; -ESRCH: it has ended; -EPERM: it has a seccomp filter that we may not suspend, and
 * was let go. Does not block. With 0, needs_page may name a page to install:
 * on its way to user mode the kernel writes to the thread's rseq area, and would wait for the page while we wait for the
 * thread. */
int inject_stopped(struct injection *injection, struct dp_err *err);
/* Runs one system call; the result is what the call returned (-errno included) or -ESRCH where the thread ended. */
long inject_call(struct injection *injection, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
		 uint64_t f);
/* clone(2) with the given flags (no CLONE_VFORK); the child is traced by us and stopped before its first instruction; its
 * registers are set by inject_start. Returns the child's pid in our namespace, or -errno; *own_pid is its pid in the target's. */
pid_t inject_clone(struct injection *injection, uint64_t flags, uint64_t stack_top, pid_t *own_pid);
/* Makes the stopped child of inject_clone an injection of its own. Blocks until its first stop (microseconds). */
int inject_adopt(struct injection *child, const struct injection *parent, pid_t pid);
/* Lets go of the thread, as it was before. */
void inject_leave(struct injection *injection);
/* Lets go of an adopted child, which begins at `entry` with the two arguments; keep_tracing stays its tracer (for seccomp). */
int inject_start(struct injection *child, uint64_t entry, uint64_t stack_top, uint64_t first, uint64_t second, bool keep_tracing);

#endif
