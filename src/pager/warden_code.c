#include "pager/warden_code.h"

#include <errno.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include "sys/uffd_abi.h"

#define ORPHAN_TURNS 50 /* of 200 ms */

#define IN_WARDEN __attribute__((section("dp_warden"), noinline))
#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE long call6(long number, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return ret;
}

/* Moves a run. A part moved, then a page that cannot be: the page is noted and the run goes on behind it. A range of several
 * areas is refused as a whole (EINVAL), like a page of an area that cannot: half as many are tried, and twice as many where they
 * went. */
ALWAYS_INLINE void move_run(long uffd, struct warden_run *run)
{
	uint32_t page = 0, span = run->pages;
	while (page < run->pages) {
		uint32_t pages = span < run->pages - page ? span : run->pages - page;
		struct uffdio_move move;
		move.dst = run->to + ((uint64_t)page << 12);
		move.src = run->from + ((uint64_t)page << 12);
		move.len = (uint64_t)pages << 12;
		move.mode = UFFDIO_MOVE_MODE_DONTWAKE;
		move.move = 0;
		long ret = call6(SYS_ioctl, uffd, UFFDIO_MOVE, (long)&move, 0, 0, 0);
		uint32_t moved = ret == 0 ? pages : move.move > 0 ? (uint32_t)(move.move >> 12) : 0;
		for (uint32_t i = 0; i < moved; i++)
			run->done |= 1ull << (page + i);
		page += moved;
		if (moved == pages)
			span = pages * 2;
		if (moved)
			continue; /* why it stopped shows when the rest is tried */
		int failure = move.move < 0 ? (int)-move.move : (int)-ret;
		if (failure == EINVAL && pages > 1) {
			span = pages / 2;
			continue;
		}
		if (failure == ENOENT)
			run->missing |= 1ull << page;
		else if (failure == EBUSY)
			run->busy |= 1ull << page;
		else if (failure == EINVAL)
			run->unable |= 1ull << page;
		else {
			run->error = failure;
			return;
		}
		page++;
	}
}

/* An atomic OR of zero changes nothing, but is a write: a page shared by fork becomes this process's own. A futex wake
 * operation does it and answers EFAULT, not a signal, where the area is gone (futex(2), FUTEX_WAKE_OP). Not a private one:
 * programs' own futexes are, so nobody of theirs is woken for nothing. */
ALWAYS_INLINE void unshare_run(struct warden_run *run)
{
	for (uint32_t page = 0; page < run->pages; page++) {
		uint64_t address = run->from + ((uint64_t)page << 12);
		long operation = FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_LT, 0);
		long ret = call6(SYS_futex, (long)address, FUTEX_WAKE_OP, 0, 0, (long)address, operation);
		if (ret >= 0)
			run->done |= 1ull << page;
	}
}

IN_WARDEN void warden_loop(struct warden_ring *ring, const struct warden_arguments *arguments)
{
	long uffd = (long)arguments->uffd, event_fd = (long)arguments->event_fd;
	long parent = call6(SYS_getppid, 0, 0, 0, 0, 0, 0);
	uint32_t seen = __atomic_load_n(&ring->done, __ATOMIC_ACQUIRE), orphaned = 0;
	for (;;) {
		uint32_t posted = __atomic_load_n(&ring->posted, __ATOMIC_ACQUIRE);
		if (posted == seen) {
			struct timespec limit = { 0, 200 * 1000 * 1000 };
			long ret = call6(SYS_futex, (long)&ring->posted, FUTEX_WAIT, seen, (long)&limit, 0, 0);
			/* The process it serves has ended and nobody said so: nothing is left to do. Not at once: a forked child
			 * may need what lies in staging, and the pager may be one that is about to follow another. */
			if (ret == -ETIMEDOUT && call6(SYS_getppid, 0, 0, 0, 0, 0, 0) != parent && ++orphaned == ORPHAN_TURNS)
				call6(SYS_exit_group, 0, 0, 0, 0, 0, 0);
			continue;
		}
		seen = posted;
		uint32_t command = ring->command;
		if (command == WARDEN_MOVE || command == WARDEN_UNSHARE) {
			uint32_t i = 0;
			for (; i < ring->run_count; i++) {
				struct warden_run *run = &ring->run[i];
				if (command == WARDEN_MOVE)
					move_run(uffd, run);
				else
					unshare_run(run);
				if (run->error == EAGAIN) {
					i++;
					break;
				}
			}
			ring->runs_tried = i;
		} else if (command == WARDEN_DROP) {
			ring->drop_error = (int32_t)call6(SYS_madvise, (long)ring->drop_start, (long)ring->drop_bytes,
							  MADV_DONTNEED, 0, 0, 0);
		}
		__atomic_store_n(&ring->done, seen, __ATOMIC_RELEASE);
		call6(SYS_futex, (long)&ring->done, FUTEX_WAKE, 1, 0, 0, 0);
		if (command != WARDEN_MOVE) {
			uint64_t one = 1;
			call6(SYS_write, event_fd, (long)&one, sizeof(one), 0, 0, 0);
		}
		if (command == WARDEN_QUIT)
			for (;;)
				call6(SYS_exit_group, 0, 0, 0, 0, 0, 0);
	}
}
