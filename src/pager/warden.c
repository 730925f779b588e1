#include "pager/warden.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include "base/base.h"
#include "base/log.h"
#include "sys/proc.h"
#include "sys/uffd.h"

/* Layout of the area in the target: code | ring (shared) | scratch and stack. */
enum { CODE_BYTES = PAGE_BYTES, STACK_BYTES = 4 * PAGE_BYTES };
#define RING_BYTES ((sizeof(struct warden_ring) + PAGE_BYTES - 1) & ~(uint64_t)(PAGE_BYTES - 1))

#define ADDRESS_LIMIT 0x7ffffffff000ull
#define LONELY_FROM (4ull << 30) /* low addresses are asked for by name (MAP_32BIT, programs at fixed places) */

/* Numbers in the warden's own table, which is empty when they are made: socket, its far end, and what is received. */
enum { WARDEN_SOCKET_NEAR = 0, WARDEN_SOCKET_FAR = 1 };

void warden_init(struct warden *warden, struct warden_job *job)
{
	memset(warden, 0, sizeof(*warden));
	warden->job = job;
	warden->injector_fd = -1;
	warden->pidfd = -1;
	warden->ring_fd = -1;
	warden->event_fd = -1;
}

struct warden_place warden_place(const struct warden *warden)
{
	return (struct warden_place){
		.pid = warden->pid,
		.own_pid = warden->own_pid,
		.traced = warden->traced,
		.area = warden->area,
		.area_bytes = warden->area_bytes,
		.staging = warden->staging,
		.staging_bytes = warden->staging_bytes,
	};
}

void warden_set_place(struct warden *warden, const struct warden_place *place)
{
	warden->pid = place->pid;
	warden->own_pid = place->own_pid;
	warden->traced = place->traced;
	warden->area = place->area;
	warden->area_bytes = place->area_bytes;
	warden->staging = place->staging;
	warden->staging_bytes = place->staging_bytes;
}

static int write_target(pid_t pid, uint64_t to, const void *from, size_t bytes)
{
	struct iovec local = { (void *)from, bytes }, remote = { (void *)to, bytes };
	return process_vm_writev(pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes ? 0 : -EFAULT;
}

static int read_target(pid_t pid, void *to, uint64_t from, size_t bytes)
{
	struct iovec local = { to, bytes }, remote = { (void *)from, bytes };
	return process_vm_readv(pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes ? 0 : -EFAULT;
}

struct gap {
	uint64_t end; /* of the area before */
	uint64_t start, bytes;
};

static int look_at_gap(void *context, const struct proc_area *area)
{
	struct gap *gap = context;
	if (area->start > gap->end && area->start <= ADDRESS_LIMIT && area->start - gap->end > gap->bytes) {
		gap->start = gap->end;
		gap->bytes = area->start - gap->end;
	}
	gap->end = DP_MAX(gap->end, area->end);
	return 0;
}

/* In the middle of the widest gap, far from all that the target has: the kernel's own choice would be the first gap that is wide
 * enough, and that may be one into which another thread is just about to put back what it took out (mremap, or munmap and mmap
 * with MAP_FIXED). */
static uint64_t lonely_address(pid_t pid, uint64_t bytes)
{
	struct gap gap = { .end = LONELY_FROM };
	if (proc_each_area(pid, look_at_gap, &gap) || gap.bytes < 2 * bytes)
		return 0;
	return (gap.start + (gap.bytes - bytes) / 2) & ~(uint64_t)(PAGE_BYTES - 1);
}

static long map_target(struct injection *target, uint64_t bytes, int protection)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	uint64_t lonely = lonely_address(target->thread, bytes);
	long address = -ENOMEM;
	if (lonely)
		address = inject_call(target, SYS_mmap, lonely, bytes, (uint64_t)protection, flags | MAP_FIXED_NOREPLACE,
				      (uint64_t)-1, 0);
	if (address < 0) /* no such gap, or just taken */
		address = inject_call(target, SYS_mmap, 0, bytes, (uint64_t)protection, flags, (uint64_t)-1, 0);
	if (address < 0)
		return address;
	long ret = inject_call(target, SYS_madvise, (uint64_t)address, bytes, MADV_DONTFORK, 0, 0, 0);
	return ret < 0 ? ret : address;
}

static int map_staging(struct warden *warden, uint64_t staging_bytes)
{
	struct injection *stopped = &warden->injection;
	/* Guard pages keep staging an area of its own, whatever is mapped beside it. */
	long staging = map_target(stopped, staging_bytes + 2 * PAGE_BYTES, PROT_NONE);
	if (staging < 0)
		return (int)staging;
	warden->staging = (uint64_t)staging + PAGE_BYTES;
	warden->staging_bytes = staging_bytes;
	long ret = inject_call(stopped, SYS_mprotect, warden->staging, staging_bytes, PROT_READ | PROT_WRITE, 0, 0, 0);
	if (ret >= 0)
		ret = inject_call(stopped, SYS_madvise, warden->staging, staging_bytes, MADV_NOHUGEPAGE, 0, 0, 0);
	return (int)DP_MIN(ret, 0);
}

/* What a warden that was killed leaves beside staging. */
static void clear_old(struct warden *warden)
{
	struct injection *stopped = &warden->injection;
	if (warden->own_pid > 0)
		inject_call(stopped, SYS_wait4, (uint64_t)warden->own_pid, 0, (uint64_t)(unsigned)__WALL | WNOHANG, 0, 0, 0);
	if (warden->area)
		inject_call(stopped, SYS_munmap, warden->area, warden->area_bytes, 0, 0, 0, 0);
	warden->own_pid = 0;
	warden->area = warden->area_bytes = 0;
}

/* Areas in the target: the warden's own and staging, which may be there from an earlier one. */
static int map_areas(struct warden *warden, pid_t target, uint64_t staging_bytes)
{
	struct injection *stopped = &warden->injection;
	clear_old(warden);
	uint64_t bytes = CODE_BYTES + RING_BYTES + STACK_BYTES;
	long area = map_target(stopped, bytes, PROT_READ | PROT_WRITE);
	if (area < 0)
		return (int)area;
	warden->area = (uint64_t)area;
	warden->area_bytes = bytes;
	long ret = warden->staging ? 0 : map_staging(warden, staging_bytes);
	size_t code_bytes = (size_t)(__stop_dp_warden - __start_dp_warden);
	if (ret >= 0)
		ret = code_bytes > CODE_BYTES ? -E2BIG : write_target(target, warden->area, __start_dp_warden, code_bytes);
	if (ret >= 0)
		ret = inject_call(stopped, SYS_mprotect, warden->area, CODE_BYTES, PROT_READ | PROT_EXEC, 0, 0, 0);
	return (int)DP_MIN(ret, 0);
}

/* Sends the userfaultfd, the ring and the eventfd over `socket_fd`. */
static int send_descriptors(int socket_fd, const int descriptors[3])
{
	char byte = 0;
	struct iovec data = { &byte, 1 };
	union {
		char bytes[CMSG_SPACE(3 * sizeof(int))];
		struct cmsghdr align;
	} control;
	memset(&control, 0, sizeof(control));
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(3 * sizeof(int));
	memcpy(CMSG_DATA(header), descriptors, 3 * sizeof(int));
	return sendmsg(socket_fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* What the warden receives with: laid out in its scratch memory, pointers valid there. */
struct receive_block {
	struct msghdr message;
	struct iovec data;
	char byte;
	_Alignas(8) char control[CMSG_SPACE(3 * sizeof(int))];
};

static int receive_in_warden(struct injection *child, uint64_t scratch, int numbers[3])
{
	struct receive_block block = { 0 };
	block.message.msg_iov = (void *)(scratch + offsetof(struct receive_block, data));
	block.message.msg_iovlen = 1;
	block.message.msg_control = (void *)(scratch + offsetof(struct receive_block, control));
	block.message.msg_controllen = sizeof(block.control);
	block.data.iov_base = (void *)(scratch + offsetof(struct receive_block, byte));
	block.data.iov_len = 1;
	int ret = write_target(child->thread, scratch, &block, sizeof(block));
	if (ret)
		return ret;
	long got = inject_call(child, SYS_recvmsg, WARDEN_SOCKET_NEAR, scratch, MSG_CMSG_CLOEXEC, 0, 0, 0);
	if (got < 0)
		return (int)got;
	ret = read_target(child->thread, &block, scratch, sizeof(block));
	if (ret)
		return ret;
	struct cmsghdr *header = (struct cmsghdr *)block.control;
	if (header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(3 * sizeof(int)))
		return -EPROTO;
	memcpy(numbers, CMSG_DATA(header), 3 * sizeof(int));
	return 0;
}

/* Runs in the fresh warden, which has a copy of the target's descriptors: gives them all up, gets its own. */
static int furnish(struct warden *warden, struct injection *child, int uffd, int ring_fd, uint64_t arguments_address)
{
	uint64_t scratch = warden->area + CODE_BYTES + RING_BYTES;
	long ret = inject_call(child, SYS_close_range, 0, ~0u, 0, 0, 0, 0);
	if (ret >= 0)
		ret = inject_call(child, SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, scratch, 0, 0);
	if (ret < 0)
		return (int)ret;
	cleanup_fd int far = proc_pidfd_getfd(warden->pidfd, WARDEN_SOCKET_FAR);
	if (far < 0)
		return far;
	ret = send_descriptors(far, (const int[3]){ uffd, ring_fd, warden->event_fd });
	int numbers[3] = { -1, -1, -1 };
	if (!ret)
		ret = receive_in_warden(child, scratch, numbers);
	if (ret)
		return (int)ret;
	ret = inject_call(child, SYS_mmap, warden->area + CODE_BYTES, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			  (uint64_t)numbers[1], 0);
	if (ret < 0)
		return (int)ret;
	inject_call(child, SYS_madvise, warden->area + CODE_BYTES, RING_BYTES, MADV_DONTFORK, 0, 0, 0);
	inject_call(child, SYS_close, (uint64_t)numbers[1], 0, 0, 0, 0, 0);
	inject_call(child, SYS_close, WARDEN_SOCKET_FAR, 0, 0, 0, 0, 0);
	inject_call(child, SYS_setsid, 0, 0, 0, 0, 0, 0);
	static const char name[16] = "dp-warden";
	ret = write_target(child->thread, scratch, name, sizeof(name));
	if (!ret)
		inject_call(child, SYS_prctl, PR_SET_NAME, scratch, 0, 0, 0, 0);
	struct warden_arguments arguments = { (uint64_t)numbers[0], (uint64_t)numbers[2] };
	return write_target(child->thread, arguments_address, &arguments, sizeof(arguments));
}

static bool has_seccomp_filter(pid_t pid)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (io_read_file(path, &text, 65536) < 0)
		return false;
	const char *line = strstr(text, "\nSeccomp:\t");
	return line && line[10] != '0';
}

static int map_ring(struct warden *warden)
{
	void *ring = mmap(NULL, RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, warden->ring_fd, 0);
	if (ring == MAP_FAILED)
		return -errno;
	warden->ring = ring;
	return 0;
}

static int make_ring(struct warden *warden)
{
	warden->ring_fd = memfd_create("dp-warden-ring", MFD_CLOEXEC);
	if (warden->ring_fd < 0 || ftruncate(warden->ring_fd, RING_BYTES))
		return -errno;
	int ret = map_ring(warden);
	if (ret)
		return ret;
	warden->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return warden->event_fd < 0 ? -errno : 0;
}

static int inject_warden(struct warden *warden, pid_t target, int uffd, uint64_t staging_bytes)
{
	bool fresh = !warden->staging;
	int ret = map_areas(warden, target, staging_bytes);
	if (!ret && fresh)
		ret = uffd_register(uffd, warden->staging, staging_bytes, false);
	if (ret)
		return ret;
	uint64_t stack_top = warden->area + warden->area_bytes - 64;
	pid_t pid = inject_clone(&warden->injection, CLONE_VM, stack_top, &warden->own_pid);
	if (pid < 0)
		return pid;
	struct injection child;
	ret = inject_adopt(&child, &warden->injection, pid);
	if (ret)
		return ret;
	warden->pid = pid;
	warden->pidfd = proc_pidfd_open(pid);
	ret = warden->pidfd < 0 ? warden->pidfd : furnish(warden, &child, uffd, warden->ring_fd, stack_top + 16);
	if (!ret) {
		warden->traced = has_seccomp_filter(target);
		uint64_t entry = warden->area + (uint64_t)((const char *)warden_loop - __start_dp_warden);
		ret = inject_start(&child, entry, stack_top, warden->area + CODE_BYTES, stack_top + 16, warden->traced);
	}
	if (ret)
		kill(pid, SIGKILL);
	return ret;
}

static void close_own(struct warden *warden)
{
	if (warden->ring)
		munmap(warden->ring, RING_BYTES);
	warden->ring = NULL;
	dp_close_fd(&warden->pidfd);
	dp_close_fd(&warden->ring_fd);
	dp_close_fd(&warden->event_fd);
	warden->pidfd = warden->ring_fd = warden->event_fd = -1;
}

static void forget(struct warden *warden)
{
	close_own(warden);
	dp_close_fd(&warden->injector_fd);
	warden_init(warden, warden->job);
}

void warden_lose(struct warden *warden)
{
	close_own(warden);
	warden->pid = 0;
	warden->busy = warden->traced = false;
	warden->state = WARDEN_LOST;
}

int warden_adopt(struct warden *warden, int ring_fd, int event_fd, int pidfd)
{
	warden->ring_fd = ring_fd;
	warden->event_fd = event_fd;
	warden->pidfd = pidfd;
	int ret = ring_fd < 0 ? -EBADF : map_ring(warden);
	if (ret)
		return ret;
	warden->state = WARDEN_READY;
	return 0;
}

static int wake(struct warden *warden, uint32_t command)
{
	if (warden->state != WARDEN_READY)
		return -ESRCH;
	if (warden->busy)
		return -EBUSY;
	struct warden_ring *ring = warden->ring;
	ring->command = command;
	ring->runs_tried = 0;
	__atomic_store_n(&ring->posted, ring->posted + 1, __ATOMIC_RELEASE);
	return syscall(SYS_futex, &ring->posted, FUTEX_WAKE, 1, NULL, NULL, 0) < 0 ? -errno : 0;
}

static bool is_done(const struct warden *warden)
{
	return __atomic_load_n(&warden->ring->done, __ATOMIC_ACQUIRE) == warden->ring->posted;
}

bool warden_is_dead(const struct warden *warden)
{
	return warden->pidfd < 0 || proc_pidfd_kill(warden->pidfd, 0) == -ESRCH || !proc_has_memory(warden->pid);
}

static int wait_done(struct warden *warden)
{
	for (;;) {
		uint32_t done = __atomic_load_n(&warden->ring->done, __ATOMIC_ACQUIRE);
		if (done == warden->ring->posted)
			return 0;
		struct timespec limit = { .tv_nsec = 20 * 1000 * 1000 };
		long ret = syscall(SYS_futex, &warden->ring->done, FUTEX_WAIT, done, &limit, NULL, 0);
		if (ret < 0 && errno == ETIMEDOUT && warden_is_dead(warden))
			return is_done(warden) ? 0 : -ESRCH;
	}
}

void warden_wait_move(struct warden *warden)
{
	wait_done(warden);
}

int warden_move(struct warden *warden)
{
	int ret = wake(warden, WARDEN_MOVE);
	return ret ? ret : wait_done(warden);
}

int warden_unshare(struct warden *warden)
{
	int ret = wake(warden, WARDEN_UNSHARE);
	warden->busy |= !ret;
	return ret;
}

int warden_drop(struct warden *warden, uint64_t start, uint64_t bytes)
{
	if (warden->state == WARDEN_READY && !warden->busy) {
		warden->ring->drop_start = start;
		warden->ring->drop_bytes = bytes;
	}
	int ret = wake(warden, WARDEN_DROP);
	warden->busy |= !ret;
	return ret;
}

bool warden_finished(struct warden *warden)
{
	if (!warden->busy || !is_done(warden))
		return false;
	warden_hear(warden);
	warden->busy = false;
	return true;
}

void warden_hear(struct warden *warden)
{
	uint64_t count;
	ssize_t ignored = read(warden->event_fd, &count, sizeof(count));
	(void)ignored;
}

static void retire(struct warden *warden, int uffd, struct injection *target)
{
	int ret = wake(warden, WARDEN_QUIT);
	if (!ret)
		ret = wait_done(warden);
	if (ret)
		proc_pidfd_kill(warden->pidfd, SIGKILL);
	/* It is a child of the target and ends any moment; only a wait with __WALL sees it. */
	for (int i = 0; i < 2000; i++) {
		long reaped = inject_call(target, SYS_wait4, (uint64_t)warden->own_pid, 0, (uint64_t)(unsigned)__WALL | WNOHANG,
					  0, 0, 0);
		if (reaped != 0)
			break;
		usleep(50);
	}
	/* Unregistered first: an unmap event would wait for us, who wait for the call. */
	uffd_unregister(uffd, warden->staging, warden->staging_bytes);
	inject_call(target, SYS_munmap, warden->area, warden->area_bytes, 0, 0, 0, 0);
	inject_call(target, SYS_munmap, warden->staging - PAGE_BYTES, warden->staging_bytes + 2 * PAGE_BYTES, 0, 0, 0, 0);
}

/* ---- the injector: a process of its own ---- */

/* Serves nothing and waits for nobody but the thread: the pager serves what that needs, or one that follows it. */
static int stop_thread(struct warden *warden, pid_t thread, struct dp_err *err)
{
	int ret = inject_begin(&warden->injection, thread, err);
	while (!ret) {
		ret = inject_stopped(&warden->injection, err);
		if (!ret && __atomic_load_n(&warden->job->state, __ATOMIC_ACQUIRE) == JOB_UNWANTED)
			_exit(1); /* the kernel lets go of a thread whose tracer ends */
		__atomic_store_n(&warden->job->needs_page, ret ? 0 : warden->injection.needs_page, __ATOMIC_RELEASE);
		if (!ret)
			usleep(30);
	}
	return ret;
}

static int place(struct warden *warden, pid_t target, int uffd, uint64_t staging_bytes, struct dp_err *err)
{
	bool fresh = !warden->staging;
	int ret = inject_warden(warden, target, uffd, staging_bytes);
	if (ret && warden->area)
		inject_call(&warden->injection, SYS_munmap, warden->area, warden->area_bytes, 0, 0, 0, 0);
	if (ret && fresh && warden->staging)
		inject_call(&warden->injection, SYS_munmap, warden->staging - PAGE_BYTES, warden->staging_bytes + 2 * PAGE_BYTES,
			    0, 0, 0, 0);
	return ret ? dp_fail_errno(err, -ret, "place the warden in process %d", target) : 0;
}

static void publish(struct warden *warden, int ret, const struct dp_err *err)
{
	struct warden_job *job = warden->job;
	job->place = warden_place(warden);
	snprintf(job->text, sizeof(job->text), "%s", err->text);
	uint32_t running = JOB_RUNNING;
	bool wanted = __atomic_compare_exchange_n(&job->state, &running, ret < 0 ? JOB_FAILED : JOB_DONE, false, __ATOMIC_ACQ_REL,
						  __ATOMIC_ACQUIRE);
	if (!wanted && warden->pidfd >= 0)
		proc_pidfd_kill(warden->pidfd, SIGKILL);
}

static void inject(struct warden *warden, enum job_kind kind, pid_t thread, int uffd, uint64_t staging_bytes)
	__attribute__((noreturn));
static void inject(struct warden *warden, enum job_kind kind, pid_t thread, int uffd, uint64_t staging_bytes)
{
	struct warden_job *job = warden->job;
	struct dp_err err = { "" };
	uint32_t asked = JOB_ASKED;
	signal(SIGCHLD, SIG_DFL);
	prctl(PR_SET_NAME, "dp-injector");
	job->injector = getpid();
	if (!__atomic_compare_exchange_n(&job->state, &asked, JOB_RUNNING, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		_exit(1); /* the pager has died and another does not want it */
	int ret = stop_thread(warden, thread, &err);
	bool stopped = ret > 0;
	if (stopped && kind == JOB_PLACE)
		ret = place(warden, thread, uffd, staging_bytes, &err);
	else if (stopped)
		retire(warden, uffd, &warden->injection);
	if (stopped)
		inject_leave(&warden->injection);
	publish(warden, ret, &err);
	/* The target's filters are suspended for the warden as long as we trace it. */
	if (kind == JOB_PLACE && ret >= 0 && warden->traced)
		waitpid(warden->pid, NULL, __WALL);
	_exit(0);
}

int warden_prepare(struct warden *warden)
{
	return make_ring(warden);
}

int warden_begin(struct warden *warden, enum job_kind kind, pid_t thread, int uffd, uint64_t staging_bytes, struct dp_err *err)
{
	struct warden_job *job = warden->job;
	job->kind = kind;
	job->needs_page = 0;
	job->injector = 0;
	__atomic_store_n(&job->state, JOB_ASKED, __ATOMIC_RELEASE);
	pid_t pid = fork();
	if (pid == 0)
		inject(warden, kind, thread, uffd, staging_bytes);
	warden->injector_fd = pid > 0 ? proc_pidfd_open(pid) : -1;
	if (pid < 0) {
		job->state = JOB_NONE;
		return dp_fail_errno(err, errno, "fork for process %d", thread);
	}
	warden->state = kind == JOB_PLACE ? WARDEN_STOPPING_TARGET : WARDEN_LEAVING;
	warden->asked_ns = clock_now_ns();
	return 0;
}

bool warden_adopt_job(struct warden *warden, int ring_fd, int event_fd)
{
	struct warden_job *job = warden->job;
	uint32_t asked = JOB_ASKED;
	bool unbegun = __atomic_compare_exchange_n(&job->state, &asked, JOB_NONE, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
	if (unbegun || job->state == JOB_NONE || ring_fd < 0 || event_fd < 0) {
		dp_close_fd(&ring_fd);
		dp_close_fd(&event_fd);
		return false;
	}
	dp_close_fd(&warden->ring_fd);
	dp_close_fd(&warden->event_fd);
	warden->ring_fd = ring_fd;
	warden->event_fd = event_fd;
	if (!warden->ring && map_ring(warden))
		return false;
	warden->injector_fd = proc_pidfd_open(job->injector);
	warden->state = job->kind == JOB_PLACE ? WARDEN_STOPPING_TARGET : WARDEN_LEAVING;
	return true;
}

void warden_job_over(struct warden *warden)
{
	dp_close_fd(&warden->injector_fd);
	warden->injector_fd = -1;
	__atomic_store_n(&warden->job->state, JOB_NONE, __ATOMIC_RELEASE);
}

/* As it was before the job. */
static void job_failed(struct warden *warden)
{
	if (warden->job->kind == JOB_RETIRE)
		warden->state = WARDEN_READY;
	else if (warden->staging)
		warden_lose(warden);
	else
		forget(warden);
}

int warden_poll(struct warden *warden, struct dp_err *err)
{
	const struct warden_job *job = warden->job;
	struct pollfd ended = { .fd = warden->injector_fd, .events = POLLIN };
	bool dead = warden->injector_fd < 0 || poll(&ended, 1, 0) > 0;
	/* after its death is looked at: it says before it dies */
	uint32_t state = __atomic_load_n(&job->state, __ATOMIC_ACQUIRE);
	if (state != JOB_DONE && state != JOB_FAILED && !dead)
		return 0;
	if (state != JOB_DONE) {
		job_failed(warden);
		if (state != JOB_FAILED)
			return dp_fail(err, ESRCH, "the injector died");
		return dp_fail(err, EIO, "%s", job->text);
	}
	if (job->kind == JOB_RETIRE) {
		forget(warden);
		return 1;
	}
	warden_set_place(warden, &job->place);
	warden->pidfd = proc_pidfd_open(warden->pid);
	warden->state = WARDEN_READY;
	return 1;
}

static void end(struct warden *warden)
{
	if (warden->pidfd >= 0)
		proc_pidfd_kill(warden->pidfd, SIGKILL);
	else if (warden->state == WARDEN_STOPPING_TARGET &&
		 __atomic_exchange_n(&warden->job->state, JOB_UNWANTED, __ATOMIC_ACQ_REL) == JOB_DONE)
		kill(warden->job->place.pid, SIGKILL); /* it was placed a moment ago */
}

void warden_kill(struct warden *warden)
{
	end(warden);
	dp_close_fd(&warden->injector_fd);
	warden->injector_fd = -1;
	if (warden->staging)
		warden_lose(warden);
	else
		forget(warden);
}

void warden_discard(struct warden *warden)
{
	end(warden);
	forget(warden);
}

bool warden_owns(const struct warden *warden, uint64_t start, uint64_t end)
{
	if (!warden->staging)
		return false;
	return (start < warden->area + warden->area_bytes && end > warden->area) ||
	       (start < warden->staging + warden->staging_bytes + PAGE_BYTES && end > warden->staging - PAGE_BYTES);
}
