#include "sys/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include "base/base.h"
#include "sys/criu.h"
#include "sys/uffd_abi.h"

#define KERNEL_MAJOR 6
#define KERNEL_MINOR 8

/* Remedies that several share. */
#define BE_ROOT "run as root, or give the container this capability"
#define NEW_KERNEL "boot Linux 6.8 or later"
#define NOT_BLOCKED "run as root; in a container, give it the capability and let its seccomp profile permit the call"

__attribute__((format(printf, 3, 4)))
static bool answer(struct probe_result *result, bool present, const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vsnprintf(result->detail, sizeof(result->detail), format, args);
	va_end(args);
	return present;
}

/* Runs a trial in a child; the trial returns 0 or -errno, which comes back as the exit code (errnos are below 256). */
static int try_in_child(int (*trial)(void))
{
	pid_t pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(10); /* a trial that hangs is a "no" */
		_exit(-trial());
	}
	int status;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -ETIMEDOUT;
}

/* A lack of privilege is mended otherwise than a lack in the kernel. */
static bool answer_refusal(struct probe_result *result, int code, const char *what)
{
	if (code == EPERM || code == EACCES)
		result->remedy = NOT_BLOCKED;
	return answer(result, false, "%s: %s", what, strerror(code));
}

static bool answer_trial(struct probe_result *result, int (*trial)(void), const char *what)
{
	int ret = try_in_child(trial);
	return ret ? answer_refusal(result, -ret, what) : answer(result, true, "%s", what);
}

/* ---- the machine ---- */
static bool probe_kernel(struct probe_result *result)
{
	struct utsname name;
	int major = 0, minor = 0;
	if (uname(&name) || sscanf(name.release, "%d.%d", &major, &minor) != 2)
		return answer(result, false, "uname names no version");
	bool enough = major > KERNEL_MAJOR || (major == KERNEL_MAJOR && minor >= KERNEL_MINOR);
	return answer(result, enough, "Linux %s%s", name.release, enough ? "" : " is older than 6.8");
}

static bool probe_machine(struct probe_result *result)
{
	struct utsname name;
	long page_bytes = sysconf(_SC_PAGESIZE);
	if (uname(&name))
		return answer(result, false, "uname: %s", strerror(errno));
	bool good = strcmp(name.machine, "x86_64") == 0 && page_bytes == PAGE_BYTES;
	return answer(result, good, "%s, pages of %ld bytes", name.machine, page_bytes);
}

/* ---- privilege ---- */
static bool has_capability(unsigned number)
{
	cleanup_free char *status = NULL;
	if (io_read_file("/proc/self/status", &status, 65536) < 0)
		return false;
	const char *line = strstr(status, "CapEff:");
	return line && (strtoull(line + strlen("CapEff:"), NULL, 16) >> number & 1);
}

static bool answer_capability(struct probe_result *result, unsigned number, const char *purpose)
{
	bool held = has_capability(number);
	return answer(result, held, "%s%s", held ? "" : "not held: ", purpose);
}

static bool probe_cap_ptrace(struct probe_result *result)
{
	return answer_capability(result, CAP_SYS_PTRACE, "userfaultfd with events, ptrace");
}

static bool probe_cap_admin(struct probe_result *result)
{
	return answer_capability(result, CAP_SYS_ADMIN, "namespaces, CRIU");
}

static bool probe_cap_checkpoint(struct probe_result *result)
{
	return answer_capability(result, CAP_CHECKPOINT_RESTORE, "CRIU without CAP_SYS_ADMIN (which covers it)");
}

static bool probe_cap_resource(struct probe_result *result)
{
	return answer_capability(result, CAP_SYS_RESOURCE, "restoring resource limits above those of this shell");
}

static bool probe_cap_net_admin(struct probe_result *result)
{
	return answer_capability(result, CAP_NET_ADMIN, "sockets of processes with open TCP connections");
}

/* ---- userfaultfd ---- */
#define EVENT_FEATURES (UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP)

/* Opens one with these features; *available gets all that the kernel has. Returns the fd or -errno. */
static int open_uffd(uint64_t features, uint64_t *available)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return -errno;
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	if (ioctl(fd, UFFDIO_API, &api)) {
		int code = errno;
		close(fd);
		return -code;
	}
	if (available)
		*available = api.features;
	return fd;
}

static bool probe_userfaultfd(struct probe_result *result)
{
	int fd = open_uffd(0, NULL);
	if (fd < 0)
		return answer_refusal(result, -fd, "userfaultfd");
	close(fd);
	return answer(result, true, "faults of kernel and user code");
}

static bool probe_uffd_events(struct probe_result *result)
{
	int fd = open_uffd(EVENT_FEATURES, NULL);
	if (fd < 0)
		return answer_refusal(result, -fd, "fork, remap, remove, unmap");
	close(fd);
	return answer(result, true, "fork, remap, remove, unmap");
}

static bool answer_feature(struct probe_result *result, uint64_t feature, const char *purpose)
{
	uint64_t available = 0;
	int fd = open_uffd(0, &available);
	if (fd < 0)
		return answer_refusal(result, -fd, "userfaultfd");
	close(fd);
	return (available & feature) ? answer(result, true, "%s", purpose)
				     : answer(result, false, "the kernel lacks it: %s", purpose);
}

static bool probe_uffd_wp_async(struct probe_result *result)
{
	return answer_feature(result, UFFD_FEATURE_WP_ASYNC, "finds written pages without faults");
}

static bool probe_uffd_shmem(struct probe_result *result)
{
	return answer_feature(result, UFFD_FEATURE_MISSING_SHMEM, "faults of shared memory");
}

static char *map_pages(size_t pages)
{
	char *area = mmap(NULL, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return area == MAP_FAILED ? NULL : area;
}

/* A uffd with one registered page, *area, which is empty. */
static int open_registered(uint64_t features, char **area)
{
	int fd = open_uffd(features, NULL);
	if (fd < 0)
		return fd;
	*area = map_pages(1);
	struct uffdio_register range = { .range = { (uintptr_t)*area, PAGE_BYTES }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	if (!*area || ioctl(fd, UFFDIO_REGISTER, &range))
		return -errno;
	return fd;
}

/* The trials below run in a child that exits right after, so nothing is released. */
static int try_move(void)
{
	char *to = NULL, *from = map_pages(1);
	int fd = open_registered(EVENT_FEATURES, &to);
	if (fd < 0)
		return fd;
	if (!from)
		return -ENOMEM;
	from[7] = 'm';
	struct uffdio_move move = { .dst = (uintptr_t)to, .src = (uintptr_t)from, .len = PAGE_BYTES };
	if (ioctl(fd, UFFDIO_MOVE, &move))
		return -errno;
	return to[7] == 'm' && from[7] == 0 ? 0 : -EIO;
}

static bool probe_uffd_move(struct probe_result *result)
{
	return answer_trial(result, try_move, "UFFDIO_MOVE of a page");
}

static int try_poison(void)
{
	char *area = NULL;
	int fd = open_registered(0, &area);
	if (fd < 0)
		return fd;
	struct uffdio_poison poison = { .range = { (uintptr_t)area, PAGE_BYTES } };
	return ioctl(fd, UFFDIO_POISON, &poison) ? -errno : 0;
}

static bool probe_uffd_poison(struct probe_result *result)
{
	return answer_trial(result, try_poison, "UFFDIO_POISON of a page");
}

static int try_pagemap_scan(void)
{
	char *area = map_pages(4);
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (!area)
		return -ENOMEM;
	area[0] = area[2 * PAGE_BYTES] = 1;
	struct page_region regions[4];
	struct pm_scan_arg scan = {
		.size = sizeof(scan),
		.start = (uintptr_t)area,
		.end = (uintptr_t)area + 4 * PAGE_BYTES,
		.vec = (uintptr_t)regions,
		.vec_len = ARRAY_LENGTH(regions),
		.category_mask = PAGE_IS_PRESENT,
		.return_mask = PAGE_IS_PRESENT,
	};
	int count = ioctl(fd, PAGEMAP_SCAN, &scan);
	if (count < 0)
		return -errno;
	return count == 2 && regions[1].start == (uintptr_t)area + 2 * PAGE_BYTES ? 0 : -EIO;
}

static bool probe_pagemap_scan(struct probe_result *result)
{
	return answer_trial(result, try_pagemap_scan, "PAGEMAP_SCAN for present pages");
}

/* ---- processes ---- */
static int try_pidfd(void)
{
	int pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (pidfd < 0)
		return -errno;
	return syscall(SYS_pidfd_getfd, pidfd, pidfd, 0) < 0 ? -errno : 0;
}

static bool probe_pidfd(struct probe_result *result)
{
	return answer_trial(result, try_pidfd, "pidfd_open, pidfd_getfd");
}

static int try_passpidfd(void)
{
	int ends[2], on = 1;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) ||
	    setsockopt(ends[0], SOL_SOCKET, SO_PASSPIDFD, &on, sizeof(on)) || write(ends[1], "x", 1) != 1)
		return -errno;
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec data = { &byte, 1 };
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
	if (recvmsg(ends[0], &message, 0) != 1)
		return -errno;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	return header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_PIDFD ? 0 : -ENOMSG;
}

static bool probe_passpidfd(struct probe_result *result)
{
	return answer_trial(result, try_passpidfd, "a pidfd with a message (SO_PASSPIDFD)");
}

static char target_byte = 'r';

/* Runs the trial on a child that sleeps, and ends it. */
static int with_target(int (*trial)(pid_t target))
{
	pid_t target = fork();
	if (target < 0)
		return -errno;
	if (target == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		alarm(10);
		for (;;)
			pause();
	}
	int ret = trial(target);
	kill(target, SIGKILL);
	return ret;
}

static int seize(pid_t target, uintptr_t options)
{
	if (ptrace(PTRACE_SEIZE, target, 0, options) || ptrace(PTRACE_INTERRUPT, target, 0, 0))
		return -errno;
	int status;
	if (waitpid(target, &status, __WALL) != target || !WIFSTOPPED(status))
		return -EIO;
	return ptrace(PTRACE_DETACH, target, 0, 0) ? -errno : 0;
}

static int seize_plainly(pid_t target)
{
	return seize(target, 0);
}

static int seize_without_seccomp(pid_t target)
{
	return seize(target, PTRACE_O_SUSPEND_SECCOMP);
}

static int read_memory(pid_t target)
{
	char byte = 0;
	struct iovec local = { &byte, 1 }, remote = { &target_byte, 1 };
	if (process_vm_readv(target, &local, 1, &remote, 1, 0) != 1)
		return -errno;
	return byte == target_byte ? 0 : -EIO;
}

static int try_ptrace(void)
{
	return with_target(seize_plainly);
}

static int try_suspend_seccomp(void)
{
	return with_target(seize_without_seccomp);
}

static int try_read_memory(void)
{
	return with_target(read_memory);
}

static bool probe_ptrace(struct probe_result *result)
{
	return answer_trial(result, try_ptrace, "stopping a process and letting it go");
}

static bool probe_suspend_seccomp(struct probe_result *result)
{
	return answer_trial(result, try_suspend_seccomp, "suspending a process's seccomp filter");
}

static bool probe_read_memory(struct probe_result *result)
{
	return answer_trial(result, try_read_memory, "reading another process's memory");
}

/* ---- namespaces, cgroups, file systems ---- */
static int try_pid_namespace(void)
{
	return unshare(CLONE_NEWPID) ? -errno : 0;
}

static int try_mount_namespace(void)
{
	return unshare(CLONE_NEWNS) ? -errno : 0;
}

static int try_net_namespace(void)
{
	return unshare(CLONE_NEWNET) ? -errno : 0;
}

static bool probe_pid_namespace(struct probe_result *result)
{
	return answer_trial(result, try_pid_namespace, "a new PID namespace");
}

static bool probe_mount_namespace(struct probe_result *result)
{
	return answer_trial(result, try_mount_namespace, "a new mount namespace");
}

static bool probe_net_namespace(struct probe_result *result)
{
	return answer_trial(result, try_net_namespace, "a new network namespace");
}

static bool probe_memory_cgroup(struct probe_result *result)
{
	cleanup_free char *controllers = NULL;
	if (io_read_file("/sys/fs/cgroup/cgroup.controllers", &controllers, 4096) >= 0) {
		bool there = strstr(controllers, "memory") != NULL;
		return answer(result, there, there ? "version 2" : "version 2 without the memory controller");
	}
	bool old = access("/sys/fs/cgroup/memory/memory.limit_in_bytes", R_OK) == 0;
	return answer(result, old, old ? "version 1" : "no cgroup file system with memory is mounted at /sys/fs/cgroup");
}

static bool probe_shared_memory(struct probe_result *result)
{
	struct statfs fs;
	if (statfs("/dev/shm", &fs))
		return answer(result, false, "/dev/shm: %s", strerror(errno));
	char free_text[32];
	if (fs.f_type != TMPFS_MAGIC)
		return answer(result, false, "/dev/shm is no tmpfs");
	return answer(result, true, "/dev/shm, %s free",
		      format_size((uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize, free_text, sizeof(free_text)));
}

/* ---- CRIU ---- */
static bool probe_criu(struct probe_result *result)
{
	char path[256];
	struct dp_err err;
	return criu_find(path, &err) ? answer(result, false, "%s", err.text) : answer(result, true, "%s", path);
}

static bool probe_criu_version(struct probe_result *result)
{
	char path[256];
	struct dp_err err;
	struct criu_version version;
	if (criu_find(path, &err))
		return answer(result, false, "no CRIU found");
	if (criu_check_version(path, &version, &err))
		return answer(result, false, "%s", err.text);
	return answer(result, true, "%s", version.text);
}

static bool probe_criu_check(struct probe_result *result)
{
	char path[256];
	struct dp_err err;
	if (criu_find(path, &err))
		return answer(result, false, "no CRIU found");
	if (criu_check_kernel(path, &err))
		return answer(result, false, "%s", err.text);
	return answer(result, true, "CRIU's own check passes");
}

static const struct {
	const char *name;
	bool required;
	bool (*run)(struct probe_result *result);
	const char *remedy;
} probes[] = {
	{ "kernel", true, probe_kernel, NEW_KERNEL },
	{ "machine", true, probe_machine, "use an x86-64 machine" },
	{ "cap-sys-ptrace", true, probe_cap_ptrace, BE_ROOT },
	{ "cap-sys-admin", true, probe_cap_admin, BE_ROOT },
	{ "cap-sys-resource", false, probe_cap_resource, BE_ROOT },
	{ "cap-checkpoint-restore", false, probe_cap_checkpoint, BE_ROOT },
	{ "cap-net-admin", false, probe_cap_net_admin, BE_ROOT },
	{ "userfaultfd", true, probe_userfaultfd, "use a kernel with CONFIG_USERFAULTFD" },
	{ "uffd-events", true, probe_uffd_events, "use a kernel with CONFIG_USERFAULTFD, 6.8 or later" },
	{ "uffd-move", true, probe_uffd_move, NEW_KERNEL },
	{ "uffd-wp-async", false, probe_uffd_wp_async, "boot Linux 6.7 or later with CONFIG_PTE_MARKER_UFFD_WP" },
	{ "uffd-poison", false, probe_uffd_poison, "boot Linux 6.6 or later" },
	{ "uffd-shmem", false, probe_uffd_shmem, "use a kernel with CONFIG_SHMEM" },
	{ "pagemap-scan", true, probe_pagemap_scan, "boot Linux 6.7 or later" },
	{ "pidfd", true, probe_pidfd, NOT_BLOCKED },
	{ "so-passpidfd", true, probe_passpidfd, "boot Linux 6.5 or later" },
	{ "ptrace", true, probe_ptrace, "set sysctl kernel.yama.ptrace_scope below 3" },
	{ "ptrace-suspend-seccomp", false, probe_suspend_seccomp,
	  "run outside any seccomp filter; use a kernel with CONFIG_CHECKPOINT_RESTORE" },
	{ "process-vm-readv", true, probe_read_memory, NOT_BLOCKED },
	{ "namespace-pid", true, probe_pid_namespace, NOT_BLOCKED },
	{ "namespace-mnt", true, probe_mount_namespace, NOT_BLOCKED },
	{ "namespace-net", false, probe_net_namespace, NOT_BLOCKED },
	{ "cgroup-memory", false, probe_memory_cgroup, "mount cgroup2 with the memory controller at /sys/fs/cgroup" },
	{ "shm-tmpfs", false, probe_shared_memory, "mount -t tmpfs tmpfs /dev/shm" },
	{ "criu", true, probe_criu, "run scripts/setup-criu as root" },
	{ "criu-version", true, probe_criu_version, "run scripts/setup-criu as root" },
	{ "criu-check", true, probe_criu_check, "run as root, with the loopback device up; do what CRIU's error line names" },
};
_Static_assert(ARRAY_LENGTH(probes) <= PROBE_MAX, "PROBE_MAX is too small");

size_t probe_all(struct probe_result results[static PROBE_MAX])
{
	for (size_t i = 0; i < ARRAY_LENGTH(probes); i++) {
		results[i] = (struct probe_result){ .name = probes[i].name,
						    .required = probes[i].required,
						    .remedy = probes[i].remedy };
		results[i].present = probes[i].run(&results[i]);
	}
	return ARRAY_LENGTH(probes);
}

bool probe_main_job_can_run(const struct probe_result *results, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (results[i].required && !results[i].present)
			return false;
	return true;
}
