/* filtered kill|errno PROGRAM [ARGUMENT...]: runs a program behind a filter of system calls.
 *   kill    nothing but what tests/programs/patterns needs; anything else kills the process
 *   errno   as container engines do: what reaches into other processes or changes namespaces answers EPERM */
#include <errno.h>
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const needed[] = {
	"execve",	   "brk",	   "arch_prctl",    "set_tid_address",
	"set_robust_list", "rseq",	   "prlimit64",	    "getrandom",
	"mprotect",	   "mmap",	   "munmap",	    "access",
	"openat",	   "read",	   "write",	    "close",
	"fstat",	   "newfstatat",   "pread64",	    "rt_sigaction",
	"rt_sigprocmask",  "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait",
	"pause",	   "lseek",	   "fcntl",	    "restart_syscall",
	"exit_group",	   "exit",
};
static const char *const refused[] = {
	"ptrace",
	"process_vm_readv",
	"process_vm_writev",
	"userfaultfd",
	"clone3",
	"unshare",
	"setns",
	"mount",
	"umount2",
	"pivot_root",
	"bpf",
	"perf_event_open",
	"keyctl",
	"add_key",
	"request_key",
	"kcmp",
	"move_pages",
	"mbind",
	"init_module",
	"finit_module",
	"delete_module",
	"reboot",
};

static void add(scmp_filter_ctx filter, uint32_t action, const char *const *names, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int number = seccomp_syscall_resolve_name(names[i]);
		if (number != __NR_SCMP_ERROR)
			seccomp_rule_add(filter, action, number, 0);
	}
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	int strict = !strcmp(argv[1], "kill");
	scmp_filter_ctx filter = seccomp_init(strict ? SCMP_ACT_KILL_PROCESS : SCMP_ACT_ALLOW);
	if (!filter)
		return 1;
	if (strict)
		add(filter, SCMP_ACT_ALLOW, needed, sizeof(needed) / sizeof(needed[0]));
	else
		add(filter, SCMP_ACT_ERRNO(EPERM), refused, sizeof(refused) / sizeof(refused[0]));
	if (seccomp_load(filter) < 0)
		return 1;
	execvp(argv[2], argv + 2);
	return 127;
}
