/* fail-nth: runs a command and makes its Nth system call fail, for tests of what is left behind then.
 *
 * How it works: the command is traced (ptrace), and so is every process and thread that it makes, as long as they run the same
 * program: one that executes another (CRIU) is let go. All their calls are counted together. The Nth is not made, but for close,
 * and gives an error that suits it. It ends when the command does, with the command's exit code; processes that it left are let
 * go and run on.
 * Calls of one *site* are those of one kind with the same functions of the program above them: the return addresses into its
 * text that lie next on the stack, each behind a call instruction. `--sites` lists them with how often each was seen, `--site`
 * makes the Kth call of one fail, whatever its number is this time.
 * Not counted: calls that cannot fail, and those with which things are undone (kill, unlink, rmdir, umount): what one of them
 * that failed leaves behind is no one's fault. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define OPTIONS (PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC)

struct call {
	long number;
	const char *name;
	int error;
};

#define CALL(name, error) { SYS_##name, #name, error }
/* Calls with an error of their own; all others: EIO. */
static const struct call calls[] = {
	CALL(mmap, ENOMEM),
	CALL(mremap, ENOMEM),
	CALL(mprotect, ENOMEM),
	CALL(clone, EAGAIN),
	CALL(clone3, EAGAIN),
	CALL(fork, EAGAIN),
	CALL(vfork, EAGAIN),
	CALL(execve, ENOENT),
	CALL(open, EMFILE),
	CALL(openat, EMFILE),
	CALL(socket, EMFILE),
	CALL(socketpair, EMFILE),
	CALL(pipe, EMFILE),
	CALL(pipe2, EMFILE),
	CALL(dup, EMFILE),
	CALL(dup2, EMFILE),
	CALL(dup3, EMFILE),
	CALL(epoll_create1, EMFILE),
	CALL(eventfd2, EMFILE),
	CALL(signalfd4, EMFILE),
	CALL(timerfd_create, EMFILE),
	CALL(accept4, EMFILE),
	CALL(pidfd_open, EMFILE),
	CALL(memfd_create, ENOMEM),
	CALL(userfaultfd, EMFILE),
	CALL(write, ENOSPC),
	CALL(pwrite64, ENOSPC),
	CALL(writev, ENOSPC),
	CALL(mkdir, ENOSPC),
	CALL(mkdirat, ENOSPC),
	CALL(ftruncate, ENOSPC),
	CALL(fallocate, ENOSPC),
	CALL(connect, ECONNREFUSED),
	CALL(sendmsg, EPIPE),
	CALL(sendto, EPIPE),
	CALL(recvmsg, ECONNRESET),
	CALL(recvfrom, ECONNRESET),
	CALL(read, EIO),
	CALL(close, EIO),
	CALL(fsync, EIO),
	CALL(fdatasync, EIO),
	CALL(ioctl, EIO),
	CALL(poll, ENOMEM),
	CALL(ppoll, ENOMEM),
	CALL(epoll_wait, EIO),
	CALL(epoll_ctl, ENOMEM),
	CALL(rename, EIO),
	CALL(renameat2, EIO),
	CALL(mount, EIO),
	CALL(newfstatat, EIO),
	CALL(statx, EIO),
	CALL(fcntl, EIO),
	CALL(lseek, EIO),
	CALL(flock, EIO),
	CALL(prctl, EIO),
	CALL(setns, EIO),
	CALL(unshare, EIO),
	CALL(bind, EIO),
	CALL(listen, EIO),
	CALL(getdents64, EIO),
	CALL(readlink, EIO),
	CALL(wait4, EIO),
	CALL(waitid, EIO),
	CALL(ptrace, EIO),
	CALL(process_vm_readv, EIO),
	CALL(process_vm_writev, EIO),
	CALL(pidfd_getfd, EIO),
	CALL(setsockopt, EIO),
	CALL(getsockopt, EIO),
	CALL(symlink, ENOSPC),
	CALL(fchmod, EIO),
	CALL(chdir, EIO),
	CALL(mlockall, ENOMEM),
	CALL(mlock, ENOMEM),
	CALL(pread64, EIO),
	CALL(mknodat, ENOSPC),
	CALL(setsid, EIO),
	CALL(getrandom, EIO),
	CALL(madvise, ENOMEM),
	CALL(signalfd, EMFILE),
	CALL(access, EIO),
	CALL(faccessat2, EIO),
	CALL(rt_sigaction, EIO),
	CALL(prlimit64, EIO),
	CALL(shutdown, EIO),
	CALL(sched_getaffinity, EIO),
};
static const long not_counted[] = {
	SYS_exit,
	SYS_exit_group,
	SYS_rt_sigreturn,
	SYS_restart_syscall,
	SYS_getpid,
	SYS_gettid,
	SYS_getppid,
	SYS_getuid,
	SYS_geteuid,
	SYS_getgid,
	SYS_getegid,
	SYS_brk,
	SYS_futex,
	SYS_rt_sigprocmask,
	SYS_munmap,
	SYS_set_robust_list,
	SYS_set_tid_address,
	SYS_rseq,
	SYS_arch_prctl,
	SYS_sched_yield,
	SYS_umask,
	SYS_clock_gettime,
	SYS_getpgrp,
	SYS_kill,
	SYS_tgkill,
	SYS_pidfd_send_signal,
	SYS_unlink,
	SYS_unlinkat,
	SYS_rmdir,
	SYS_umount2,
};

static uint64_t nth, counted;
static int error_wanted;
static const char *report_file;
static struct stat program;
static char failed_name[64];
static char failed_detail[320]; /* who it was, and the file that the call was about */
static pid_t failed_pid;
/* Tasks whose call is to return an error at its end. */
static struct {
	pid_t pid;
	int error;
} pending;
static pid_t command_pid;

/* ---- sites ---- */

#define SITE_FRAMES 6
#define SITE_STACK_BYTES 4096
#define SITES_MOST 8192

static const char *sites_file;
static uint64_t site_wanted, site_turn = 1; /* 0: by number */
static const uint8_t *text; /* the program's file */
static struct {
	uint64_t site, seen, number;
	const char *name;
} sites[SITES_MOST];
static size_t site_count;

/* Where the program's first byte lies in this process; 0 where that cannot be seen. */
static uint64_t program_base(pid_t pid)
{
	char path[64], line[512];
	uint64_t base = 0, start, offset, inode;

	snprintf(path, sizeof(path), "/proc/%d/maps", pid);
	FILE *file = fopen(path, "re");

	while (file && !base && fgets(line, sizeof(line), file))
		if (sscanf(line, "%lx-%*x %*s %lx %*s %lu", &start, &offset, &inode) == 3 && inode == program.st_ino)
			base = start - offset;
	if (file)
		fclose(file);
	return base;
}

/* Is the instruction before it a call? */
static bool is_return(uint64_t offset)
{
	if (offset < 8 || offset >= (uint64_t)program.st_size)
		return false;
	const uint8_t *at = text + offset;

	return at[-5] == 0xe8 || (at[-2] == 0xff && (at[-1] & 0x38) == 0x10) || (at[-3] == 0xff && (at[-2] & 0x38) == 0x10) ||
	       (at[-6] == 0xff && (at[-5] & 0x38) == 0x10);
}

static uint64_t mixed(uint64_t hash, uint64_t value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
	return hash ^ hash >> 29;
}

static uint64_t site_of(pid_t pid, long number)
{
	uint64_t stack[SITE_STACK_BYTES / 8], hash = mixed(1, (uint64_t)number);
	uint64_t base = program_base(pid);
	uint64_t top = (uint64_t)ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rsp), 0);
	ssize_t got = -1;

	/* near its end a stack is shorter */
	for (size_t bytes = sizeof(stack); got < 0 && bytes >= 256; bytes /= 2)
		got = process_vm_readv(pid, &(struct iovec){ stack, bytes }, 1, &(struct iovec){ (void *)top, bytes }, 1, 0);
	for (ssize_t i = 0, frames = 0; base && i < got / 8 && frames < SITE_FRAMES; i++)
		if (stack[i] > base && is_return(stack[i] - base)) {
			hash = mixed(hash, stack[i] - base);
			frames++;
		}
	return hash ? hash : 1;
}

/* How often this site was seen, with this time. */
static uint64_t note_site(uint64_t site, const char *name)
{
	size_t i = 0;

	while (i < site_count && sites[i].site != site)
		i++;
	if (i == SITES_MOST)
		return 0;
	if (i == site_count) {
		site_count++;
		sites[i].site = site;
		sites[i].number = counted;
		sites[i].name = name;
	}
	return ++sites[i].seen;
}

static void list_sites(void)
{
	FILE *file = sites_file ? fopen(sites_file, "we") : NULL;

	for (size_t i = 0; file && i < site_count; i++)
		fprintf(file, "%016lx %lu %lu %s\n", sites[i].site, sites[i].seen, sites[i].number, sites[i].name);
	if (file)
		fclose(file);
}

static bool map_text(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return false;
	text = mmap(NULL, (size_t)program.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	return text != MAP_FAILED;
}

/* ---- calls ---- */

static bool is_counted(long number)
{
	for (size_t i = 0; i < sizeof(not_counted) / sizeof(*not_counted); i++)
		if (not_counted[i] == number)
			return false;
	return true;
}

static const char *name_of(long number)
{
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		if (calls[i].number == number)
			return calls[i].name;
	return "other";
}

static int error_of(long number, char *name, size_t size)
{
	for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
		if (calls[i].number != number)
			continue;
		snprintf(name, size, "%s", calls[i].name);
		return calls[i].error;
	}
	snprintf(name, size, "call-%ld", number);
	return EIO;
}

/* Does it run the program that was started? */
static bool runs_program(pid_t pid)
{
	char path[64];
	struct stat status;

	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	return stat(path, &status) == 0 && status.st_dev == program.st_dev && status.st_ino == program.st_ino;
}

static void report(void)
{
	FILE *file = report_file ? fopen(report_file, "we") : NULL;

	if (!file)
		return;
	if (failed_pid)
		fprintf(file, "failed %lu %s in %d %s\n", nth, failed_name, failed_pid, failed_detail);
	else
		fprintf(file, "only %lu\n", counted);
	fclose(file);
}

static void describe(pid_t pid, uint64_t first_argument)
{
	char path[64], target[256] = "", name[32] = "";

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	FILE *file = fopen(path, "re");

	if (file && fscanf(file, "%31s", name) != 1)
		name[0] = 0;
	if (file)
		fclose(file);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, (int)first_argument);
	ssize_t length = readlink(path, target, sizeof(target) - 1);

	target[length > 0 ? length : 0] = 0;
	snprintf(failed_detail, sizeof(failed_detail), "(%s) %s", name, target);
}

static void at_entry(pid_t pid, long number, uint64_t first_argument)
{
	if (!is_counted(number))
		return;
	counted++;
	if (text) {
		uint64_t site = site_of(pid, number), seen = note_site(site, name_of(number));

		if (!site_wanted || failed_pid || site != site_wanted || seen != site_turn)
			return;
		nth = counted;
	} else if (counted != nth) {
		return;
	}
	int error = error_of(number, failed_name, sizeof(failed_name));

	failed_pid = pid;
	describe(pid, first_argument);
	report();
	pending.pid = pid;
	pending.error = error_wanted ? error_wanted : error;
	/* A descriptor is closed even where close says that it failed. */
	if (number != SYS_close)
		ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, orig_rax), -1L);
}

static void at_exit(pid_t pid)
{
	if (pending.pid != pid)
		return;
	ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rax), (long)-pending.error);
	pending.pid = 0;
}

static void on_call(pid_t pid)
{
	struct __ptrace_syscall_info info;

	if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info) < 0)
		return;
	if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
		at_entry(pid, (long)info.entry.nr, info.entry.args[0]);
	else if (info.op == PTRACE_SYSCALL_INFO_EXIT)
		at_exit(pid);
}

/* A task that stopped: what it stopped for is handled, and it goes on. */
static void on_stop(pid_t pid, int status)
{
	int signal_number = WSTOPSIG(status), event = status >> 16;

	if (signal_number == (SIGTRAP | 0x80)) {
		on_call(pid);
		ptrace(PTRACE_SYSCALL, pid, 0, 0);
	} else if (event == PTRACE_EVENT_EXEC && !runs_program(pid)) {
		ptrace(PTRACE_DETACH, pid, 0, 0);
	} else if (event == PTRACE_EVENT_STOP && signal_number != SIGTRAP) {
		ptrace(PTRACE_LISTEN, pid, 0, 0); /* a stop by SIGSTOP and the like lasts */
	} else {
		ptrace(PTRACE_SYSCALL, pid, 0, event ? 0 : (long)signal_number);
	}
}

static int trace(pid_t command)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, __WALL);

		if (pid < 0 && errno == EINTR)
			continue;
		if (pid < 0)
			return 2;
		if (WIFSTOPPED(status)) {
			on_stop(pid, status);
		} else if (pid == command) {
			if (!failed_pid)
				report();
			list_sites();
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		}
	}
}

/* The child waits until it is traced, so that its execve is seen. */
static pid_t start(char **command)
{
	int gate[2];
	char byte;

	if (pipe(gate))
		return -1;
	pid_t pid = fork();

	if (pid == 0) {
		close(gate[1]);
		if (read(gate[0], &byte, 1) < 0)
			_exit(127);
		close(gate[0]);
		execv(command[0], command);
		_exit(127);
	}
	close(gate[0]);
	if (pid > 0 && ptrace(PTRACE_SEIZE, pid, 0, OPTIONS) < 0) {
		kill(pid, SIGKILL);
		pid = -1;
	}
	close(gate[1]);
	return pid;
}

static void pass_on(int number)
{
	kill(command_pid, number);
}

static bool parse_options(int argc, char **argv)
{
	static const struct option names[] = { { "nth", 1, NULL, 'n' },
					       { "errno", 1, NULL, 'e' },
					       { "report", 1, NULL, 'r' },
					       { "sites", 1, NULL, 's' },
					       { "site", 1, NULL, 'S' },
					       { "help", 0, NULL, 'h' },
					       { NULL, 0, NULL, 0 } };
	int option;

	while ((option = getopt_long(argc, argv, "+h", names, NULL)) != -1)
		switch (option) {
		case 'n': nth = strtoull(optarg, NULL, 10); break;
		case 'e': error_wanted = atoi(optarg); break;
		case 'r': report_file = optarg; break;
		case 's': sites_file = optarg; break;
		case 'S':
			if (sscanf(optarg, "%lx:%lu", &site_wanted, &site_turn) < 1)
				return false;
			break;
		case 'h':
			printf("usage: fail-nth [--nth N | --site SITE[:K]] [--errno NUMBER] [--report FILE] [--sites FILE]\n"
			       "                /PROGRAM ARGUMENT...\n"
			       "The report is `failed N CALL in PID`, or `only COUNT` where there were fewer calls; sites are listed as\n"
			       "`SITE TIMES-SEEN FIRST-NUMBER CALL`.\n");
			exit(0);
		default: return false;
		}
	return optind < argc && stat(argv[optind], &program) == 0 && ((!sites_file && !site_wanted) || map_text(argv[optind]));
}

int main(int argc, char **argv)
{
	if (!parse_options(argc, argv)) {
		fprintf(stderr, "fail-nth: bad options or no such program, see --help\n");
		return 2;
	}
	pid_t command = start(argv + optind);

	if (command < 0) {
		fprintf(stderr, "fail-nth: %s: %s\n", argv[optind], strerror(errno));
		return 2;
	}
	/* Who ends us means the command. */
	command_pid = command;
	signal(SIGTERM, pass_on);
	signal(SIGINT, pass_on);
	return trace(command);
}
