/* Writes sandbox_filters.h: the system calls that a pool, and that a pager and its supervisor may make, as BPF programs. Run by
 * the build.
 *
 * The lists were found by running the tests under the filter (restores at half of their memory with forks, migration,
 * checkpoints, near memory, packed pages, directory and file stores, TLS), and widened to what is of the same kind and as
 * harmless, so that another libc or kernel does not break them. What matters is what is absent: execve and execveat; mount,
 * pivot_root, chroot, setns, unshare; modules, bpf, perf, keyctl, io_uring; changing users; and for a pool everything that
 * reaches into other processes. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* built for the machine that builds, without the flags of the rest */
#endif
#pragma GCC diagnostic ignored "-Wmissing-field-initializers" /* of seccomp.h's macros */
#include <errno.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Both. Names that the headers here do not know yet are passed over. */
static const char *const common[] = {
	/* descriptors, files */
	"read",
	"write",
	"readv",
	"writev",
	"pread64",
	"pwrite64",
	"preadv",
	"pwritev",
	"preadv2",
	"pwritev2",
	"close",
	"close_range",
	"lseek",
	"fstat",
	"stat",
	"lstat",
	"newfstatat",
	"statx",
	"statfs",
	"fstatfs",
	"access",
	"faccessat",
	"faccessat2",
	"open",
	"openat",
	"openat2",
	"creat",
	"readlink",
	"readlinkat",
	"getdents64",
	"fcntl",
	"flock",
	"dup",
	"dup2",
	"dup3",
	"pipe",
	"pipe2",
	"ftruncate",
	"truncate",
	"fallocate",
	"fsync",
	"fdatasync",
	"sync_file_range",
	"syncfs",
	"fadvise64",
	"rename",
	"renameat",
	"renameat2",
	"unlink",
	"unlinkat",
	"mkdir",
	"mkdirat",
	"rmdir",
	"link",
	"linkat",
	"symlink",
	"symlinkat",
	"fchmod",
	"chmod",
	"fchmodat",
	"utimensat",
	"umask",
	"copy_file_range",
	"sendfile",
	"splice",
	"getcwd",
	"memfd_create",
	/* waiting */
	"poll",
	"ppoll",
	"select",
	"pselect6",
	"epoll_create1",
	"epoll_ctl",
	"epoll_wait",
	"epoll_pwait",
	"epoll_pwait2",
	"eventfd2",
	"timerfd_create",
	"timerfd_settime",
	"timerfd_gettime",
	"signalfd4",
	"nanosleep",
	"clock_nanosleep",
	"futex",
	"futex_waitv",
	"restart_syscall",
	/* memory */
	"mmap",
	"munmap",
	"mremap",
	"mprotect",
	"madvise",
	"brk",
	"mlock",
	"mlock2",
	"munlock",
	"msync",
	"mincore",
	"membarrier",
	/* ourselves */
	"rt_sigaction",
	"rt_sigprocmask",
	"rt_sigreturn",
	"rt_sigpending",
	"rt_sigtimedwait",
	"rt_sigsuspend",
	"sigaltstack",
	"tgkill",
	"getpid",
	"gettid",
	"getppid",
	"getpgid",
	"getpgrp",
	"getsid",
	"getuid",
	"geteuid",
	"getgid",
	"getegid",
	"getgroups",
	"getresuid",
	"getresgid",
	"set_robust_list",
	"get_robust_list",
	"rseq",
	"set_tid_address",
	"arch_prctl",
	"exit",
	"exit_group",
	"getrusage",
	"times",
	"prlimit64",
	"getrlimit",
	"sysinfo",
	"uname",
	"sched_yield",
	"sched_getaffinity",
	"sched_setaffinity",
	"sched_getparam",
	"sched_getscheduler",
	"getpriority",
	"clock_gettime",
	"clock_getres",
	"gettimeofday",
	"time",
	"getcpu",
	"getrandom",
	"prctl",
	"capget",
	/* sockets */
	"connect",
	"bind",
	"listen",
	"accept",
	"accept4",
	"getsockname",
	"getpeername",
	"sendto",
	"sendmsg",
	"sendmmsg",
	"recvfrom",
	"recvmsg",
	"recvmmsg",
	"setsockopt",
	"getsockopt",
	"shutdown",
	"socketpair",
};

/* Pager and supervisor. */
static const char *const keeper[] = {
	"ptrace",	    /* puts the warden into a process and takes it out again */
	"process_vm_readv", /* pages that wait in staging; pages of a pool on this host */
	"process_vm_writev",
	"process_madvise",
	"process_mrelease",
	"pidfd_getfd",
	"pidfd_open",
	"pidfd_send_signal",
	"kcmp",
	"kill",
	"tkill",
	"wait4",
	"waitid",
	"clone",
	"clone3",
	"fork",
	"vfork",
	"setsid",
	"setpgid",
	"setpriority",
	"userfaultfd",
	"ioctl",
	"setitimer",
	"timer_create",
	"timer_settime",
	"timer_delete",
	"setrlimit",
	"chdir",
	"sched_setscheduler",
	"capset",
	"seccomp",
	"rt_sigqueueinfo",
	"mlockall",
	"munlockall",
	"alarm",
	"pause",
};

static void fail(const char *what, int error)
{
	fprintf(stderr, "sandbox_lists: %s: error %d\n", what, error);
	exit(1);
}

static void allow(scmp_filter_ctx filter, const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int number = seccomp_syscall_resolve_name(names[i]);
		int result = number == __NR_SCMP_ERROR ? 0 : seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0);

		if (result < 0)
			fail(names[i], result);
	}
}

static void allow_where(scmp_filter_ctx filter, int number, struct scmp_arg_cmp condition)
{
	int result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 1, condition);

	if (result < 0)
		fail("rule", result);
}

static void allow_sockets(scmp_filter_ctx filter)
{
	static const int domains[] = { AF_UNIX, AF_INET, AF_INET6, AF_NETLINK /* name look-ups ask for our addresses */ };

	for (size_t i = 0; i < sizeof(domains) / sizeof(domains[0]); i++)
		allow_where(filter, SCMP_SYS(socket), SCMP_A0(SCMP_CMP_EQ, (scmp_datum_t)domains[i]));
}

/* A pool makes threads, no processes. clone3 hides its flags behind a pointer: libc is told that there is none, and takes
 * clone. */
static void allow_threads(scmp_filter_ctx filter)
{
	static const unsigned long requests[] = { TCGETS, FIONREAD, FIONBIO };
	int result = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);

	if (result < 0)
		fail("clone3", result);
	allow_where(filter, SCMP_SYS(clone), SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM));
	for (size_t i = 0; i < sizeof(requests) / sizeof(requests[0]); i++)
		allow_where(filter, SCMP_SYS(ioctl), SCMP_A1(SCMP_CMP_EQ, requests[i]));
}

/* The BPF program as the initialiser of an array of struct sock_filter. */
static void write_program(scmp_filter_ctx filter, const char *name)
{
	struct {
		unsigned short code;
		unsigned char jt, jf;
		unsigned k;
	} instruction;
	FILE *file = tmpfile();

	if (!file || seccomp_export_bpf(filter, fileno(file)) < 0)
		fail("export", errno);
	rewind(file);
	printf("static const struct sock_filter %s[] = {\n", name);
	while (fread(&instruction, sizeof(instruction), 1, file) == 1)
		printf("\t{ 0x%02x, %u, %u, 0x%08x },\n", instruction.code, instruction.jt, instruction.jf, instruction.k);
	printf("};\n");
	fclose(file);
}

static scmp_filter_ctx begin(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_TRAP);

	if (!filter || seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS) < 0)
		fail("init", ENOMEM);
	seccomp_attr_set(filter, SCMP_FLTATR_CTL_OPTIMIZE, 2); /* a search tree, not a list */
	allow(filter, common, sizeof(common) / sizeof(common[0]));
	allow_sockets(filter);
	return filter;
}

int main(void)
{
	scmp_filter_ctx filter = begin();

	allow_threads(filter);
	write_program(filter, "filter_pool");
	seccomp_release(filter);
	filter = begin();
	allow(filter, keeper, sizeof(keeper) / sizeof(keeper[0]));
	write_program(filter, "filter_keeper");
	seccomp_release(filter);
	return 0;
}
