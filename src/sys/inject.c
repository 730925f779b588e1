#include "sys/inject.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/base.h"
#include "sys/proc.h"

#ifndef PTRACE_O_SUSPEND_SECCOMP
#define PTRACE_O_SUSPEND_SECCOMP (1 << 21)
#endif
#ifndef PTRACE_GET_RSEQ_CONFIGURATION
#define PTRACE_GET_RSEQ_CONFIGURATION 0x420f
#endif
/* As struct ptrace_rseq_configuration, which glibc's header may or may not have. */
struct rseq_configuration {
	uint64_t rseq_abi_pointer;
	uint32_t rseq_abi_size;
	uint32_t signature;
	uint32_t flags;
	uint32_t pad;
};

/* Results of an interrupted system call that the kernel would restart (include/linux/errno.h). */
enum { RESTARTSYS = 512, RESTARTNOINTR = 513, RESTARTNOHAND = 514, RESTART_RESTARTBLOCK = 516 };

static int find_vdso(void *context, const struct proc_area *area)
{
	uint64_t *range = context;
	if (strcmp(area->name, "[vdso]"))
		return 0;
	range[0] = area->start;
	range[1] = area->end;
	return 1;
}

static int find_syscall_instruction(pid_t pid, uint64_t *address)
{
	uint64_t range[2] = { 0, 0 };
	int ret = proc_each_area(pid, find_vdso, range);
	if (ret < 0)
		return ret;
	unsigned char code[4 * PAGE_BYTES];
	size_t bytes = DP_MIN(range[1] - range[0], sizeof(code));
	struct iovec local = { code, bytes }, remote = { (void *)range[0], bytes };
	if (!bytes || process_vm_readv(pid, &local, 1, &remote, 1, 0) != (ssize_t)bytes)
		return -ENOEXEC;
	for (size_t i = 0; i + 1 < bytes; i++)
		if (code[i] == 0x0f && code[i + 1] == 0x05) {
			*address = range[0] + i;
			return 0;
		}
	return -ENOEXEC;
}

int inject_begin(struct injection *injection, pid_t thread, struct dp_err *err)
{
	memset(injection, 0, sizeof(*injection));
	injection->thread = thread;
	/* No option that would attach us to children: the thread may still fork before it stops. */
	if (ptrace(PTRACE_SEIZE, thread, 0, 0))
		return dp_fail_errno(err, errno, "trace process %d", thread);
	if (ptrace(PTRACE_INTERRUPT, thread, 0, 0)) {
		int failure = errno;
		ptrace(PTRACE_DETACH, thread, 0, 0);
		return dp_fail_errno(err, failure, "interrupt process %d", thread);
	}
	return 0;
}

static int set_signal_mask(pid_t thread, uint64_t mask)
{
	return ptrace(PTRACE_SETSIGMASK, thread, sizeof(mask), &mask) ? -errno : 0;
}

static int keep_state(struct injection *injection)
{
	if (ptrace(PTRACE_GETREGS, injection->thread, 0, &injection->saved) ||
	    ptrace(PTRACE_GETSIGMASK, injection->thread, sizeof(injection->saved_mask), &injection->saved_mask))
		return -errno;
	/* SIGTRAP stays open: to force a step's through a block, the kernel would take its handler from the process. */
	return set_signal_mask(injection->thread, ~(1ull << (SIGTRAP - 1)));
}

static bool find_rseq(const struct injection *injection, uint64_t *area)
{
	struct rseq_configuration configuration;
	long got = ptrace(PTRACE_GET_RSEQ_CONFIGURATION, injection->thread, sizeof(configuration), &configuration);
	*area = got > 0 ? configuration.rseq_abi_pointer : 0;
	return *area != 0;
}

/* A peek fails, and does not wait, where the page is missing behind a userfaultfd. */
static bool peek(const struct injection *injection, uint64_t address, uint64_t *value)
{
	errno = 0;
	*value = (uint64_t)ptrace(PTRACE_PEEKDATA, injection->thread, address, 0);
	return !errno;
}

/* A thread stopped inside a restartable sequence goes on at the sequence's abort address, as after any preemption
 * (linux/rseq.h): the kernel can no longer see that it was inside once we have moved its instruction pointer. */
static void abort_restartable_sequence(struct injection *injection)
{
	uint64_t area, sequence, start, length, abort_address;
	/* Word 8 of struct rseq is the pointer to the sequence in progress. */
	if (!find_rseq(injection, &area) || !peek(injection, area + 8, &sequence) || !sequence)
		return;
	if (peek(injection, sequence + 8, &start) && peek(injection, sequence + 16, &length) &&
	    peek(injection, sequence + 24, &abort_address) && injection->saved.rip - start < length)
		injection->saved.rip = abort_address;
}

/* 1: at rest; 0: not yet; -ESRCH: ended. */
static int come_to_rest(struct injection *injection, struct dp_err *err)
{
	int status;
	pid_t got = waitpid(injection->thread, &status, __WALL | WNOHANG);
	if (got == 0)
		return 0;
	if (got < 0)
		return dp_fail_errno(err, errno, "wait for process %d", injection->thread);
	if (!WIFSTOPPED(status))
		return dp_fail(err, ESRCH, "process %d ended", injection->thread);
	if (status >> 16 != PTRACE_EVENT_STOP) {
		/* A signal came first: it is delivered, and the interrupt is still to come. */
		int signal_number = status >> 16 ? 0 : WSTOPSIG(status);
		ptrace(PTRACE_CONT, injection->thread, 0, signal_number);
		return 0;
	}
	injection->at_rest = true;
	return 1;
}

static bool has_filter(pid_t thread)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/status", thread);
	if (io_read_file(path, &text, 65536) < 0)
		return true; /* not known: as if */
	const char *line = strstr(text, "\nSeccomp:\t");
	return line && line[10] != '0';
}

int inject_stopped(struct injection *injection, struct dp_err *err)
{
	uint64_t area, ignored;
	int ret = injection->at_rest ? 1 : come_to_rest(injection, err);
	if (ret <= 0)
		return ret;
	injection->needs_page = find_rseq(injection, &area) && !peek(injection, area, &ignored) ? area : 0;
	if (injection->needs_page)
		return 0;
	/* Its own filter would stop our calls, or end it for them: then none is made. The kernel suspends filters for a tracer
	 * only that has none itself (restore/enter_sandbox.c). */
	if (ptrace(PTRACE_SETOPTIONS, injection->thread, 0, PTRACE_O_SUSPEND_SECCOMP) && has_filter(injection->thread)) {
		ptrace(PTRACE_DETACH, injection->thread, 0, 0);
		return dp_fail(err, EPERM, "process %d has a seccomp filter, and we may not suspend it: its memory stays",
			       injection->thread);
	}
	/* Only now: until it stopped, it could have moved to another memory by execve. */
	ret = find_syscall_instruction(injection->thread, &injection->syscall_instruction);
	if (!ret)
		ret = keep_state(injection);
	if (ret) {
		ptrace(PTRACE_DETACH, injection->thread, 0, 0);
		return dp_fail_errno(err, -ret, "prepare process %d for a system call", injection->thread);
	}
	abort_restartable_sequence(injection);
	/* From here on it has registers of ours: should we be killed, the kernel kills it too rather than let it run on with
	 * them. Suspending its filters needs a capability; without any it is not needed. */
	if (ptrace(PTRACE_SETOPTIONS, injection->thread, 0, PTRACE_O_EXITKILL | PTRACE_O_SUSPEND_SECCOMP))
		ptrace(PTRACE_SETOPTIONS, injection->thread, 0, PTRACE_O_EXITKILL);
	injection->stopped = true;
	return 1;
}

/* Of what can fail for no reason of ours while a thread has registers that are not its own: it would die of that. */
#define TRIES 3

static int wait_stop(pid_t thread, int *status)
{
	for (int tries = 0; waitpid(thread, status, __WALL) < 0;)
		if (errno != EINTR && ++tries == TRIES)
			return -errno;
	return WIFSTOPPED(*status) ? 0 : -ESRCH;
}

static bool is_blocked(pid_t thread, int number)
{
	uint64_t mask;
	return !ptrace(PTRACE_GETSIGMASK, thread, sizeof(mask), &mask) && mask & 1ull << (number - 1);
}

/* A SIGTRAP that is no step's, but somebody's who sent it: it is sent again when we have left. */
static bool is_sent(struct injection *injection)
{
	siginfo_t info;
	bool sent = !ptrace(PTRACE_GETSIGINFO, injection->thread, 0, &info) && info.si_code <= 0;
	injection->owes_trap |= sent;
	return sent;
}

static int step_over(struct injection *injection, struct user_regs_struct *regs, pid_t *child)
{
	if (ptrace(PTRACE_SETREGS, injection->thread, 0, regs))
		return -errno;
	for (int signal_number = 0;;) {
		int status;
		if (ptrace(PTRACE_SINGLESTEP, injection->thread, 0, signal_number))
			return -errno;
		signal_number = 0;
		int ret = wait_stop(injection->thread, &status);
		if (ret)
			return ret;
		int event = status >> 16;
		if (event == PTRACE_EVENT_CLONE || event == PTRACE_EVENT_FORK || event == PTRACE_EVENT_VFORK) {
			unsigned long pid = 0;
			ptrace(PTRACE_GETEVENTMSG, injection->thread, 0, &pid);
			if (child)
				*child = (pid_t)pid;
			continue;
		}
		if (event == PTRACE_EVENT_STOP)
			continue; /* a group stop */
		if (WSTOPSIG(status) == SIGTRAP && !is_sent(injection))
			break;
		/* Of the signals that faults raise the kernel takes the first that is queued, blocked or not, once there is one
		 * that is not, as the step's (sys/steady/steady.c): one that the thread was not told of yet goes back behind.
		 */
		if (WSTOPSIG(status) != SIGTRAP && !is_blocked(injection->thread, WSTOPSIG(status)))
			return -EFAULT; /* the instruction itself failed */
		signal_number = WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status);
	}
	return ptrace(PTRACE_GETREGS, injection->thread, 0, regs) ? -errno : 0;
}

static long call_with_child(struct injection *injection, long number, const uint64_t arguments[6], pid_t *child)
{
	struct user_regs_struct regs = injection->saved;
	regs.rip = injection->syscall_instruction;
	regs.rax = (uint64_t)number;
	regs.orig_rax = (uint64_t)-1; /* nothing to restart */
	regs.rdi = arguments[0];
	regs.rsi = arguments[1];
	regs.rdx = arguments[2];
	regs.r10 = arguments[3];
	regs.r8 = arguments[4];
	regs.r9 = arguments[5];
	regs.eflags &= ~0x100ull;
	int ret = step_over(injection, &regs, child);
	return ret ? ret : (long)regs.rax;
}

long inject_call(struct injection *injection, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	return call_with_child(injection, number, (const uint64_t[6]){ a, b, c, d, e, f }, NULL);
}

pid_t inject_clone(struct injection *injection, uint64_t flags, uint64_t stack_top, pid_t *own_pid)
{
	pid_t child = 0;
	unsigned long follow = PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK;
	if (ptrace(PTRACE_SETOPTIONS, injection->thread, 0, follow | PTRACE_O_SUSPEND_SECCOMP) &&
	    ptrace(PTRACE_SETOPTIONS, injection->thread, 0, follow))
		return -errno;
	long ret = call_with_child(injection, SYS_clone, (const uint64_t[6]){ flags, stack_top }, &child);
	if (ret < 0)
		return (pid_t)ret;
	*own_pid = (pid_t)ret;
	return child ? child : -ECHILD;
}

int inject_adopt(struct injection *child, const struct injection *parent, pid_t pid)
{
	int status;
	*child = *parent;
	child->thread = pid;
	child->owes_trap = false;
	int ret = wait_stop(pid, &status);
	if (!ret)
		ret = keep_state(child);
	child->stopped = !ret;
	return ret;
}

/* What the kernel does with an interrupted system call when no handler runs: back to its instruction. */
static void restart_interrupted_call(struct user_regs_struct *regs)
{
	if ((long)regs->orig_rax < 0)
		return;
	switch (-(long)regs->rax) {
	case RESTARTSYS:
	case RESTARTNOINTR:
	case RESTARTNOHAND:
		regs->rax = regs->orig_rax;
		regs->rip -= 2;
		break;
	case RESTART_RESTARTBLOCK:
		regs->rax = SYS_restart_syscall;
		regs->rip -= 2;
		break;
	default:
		return;
	}
	regs->orig_rax = (uint64_t)-1;
}

void inject_leave(struct injection *injection)
{
	if (injection->stopped) {
		restart_interrupted_call(&injection->saved);
		for (int tries = 0; ptrace(PTRACE_SETREGS, injection->thread, 0, &injection->saved) && ++tries < TRIES;)
			;
		set_signal_mask(injection->thread, injection->saved_mask);
		injection->stopped = false;
	}
	ptrace(PTRACE_DETACH, injection->thread, 0, 0);
	if (injection->owes_trap)
		syscall(SYS_tkill, injection->thread, SIGTRAP);
}

int inject_start(struct injection *child, uint64_t entry, uint64_t stack_top, uint64_t first, uint64_t second, bool keep_tracing)
{
	struct user_regs_struct regs = child->saved;
	regs.rip = entry;
	regs.rsp = (stack_top & ~15ull) - 8; /* as after a call */
	regs.rdi = first;
	regs.rsi = second;
	regs.orig_rax = (uint64_t)-1;
	regs.eflags &= ~0x500ull; /* no trap, direction up */
	if (ptrace(PTRACE_SETREGS, child->thread, 0, &regs))
		return -errno;
	child->stopped = false;
	long ret = keep_tracing ? ptrace(PTRACE_CONT, child->thread, 0, 0) : ptrace(PTRACE_DETACH, child->thread, 0, 0);
	return ret ? -errno : 0;
}
