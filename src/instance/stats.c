#include "instance/stats.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/base.h"

/* 0..3 have a bucket each; above, every power of two has four. */
static unsigned bucket_of(uint64_t ns)
{
	if (ns < 4)
		return (unsigned)ns;
	unsigned exponent = 63 - (unsigned)__builtin_clzll(ns);
	unsigned bucket = (exponent - 1) * 4 + (unsigned)((ns >> (exponent - 2)) & 3);
	return DP_MIN(bucket, HISTOGRAM_BUCKETS - 1u);
}

static uint64_t bucket_upper_bound(unsigned bucket)
{
	if (bucket < 4)
		return bucket;
	unsigned exponent = bucket / 4 + 1;
	return ((4ull + bucket % 4 + 1) << (exponent - 2)) - 1;
}

void histogram_add(struct histogram *histogram, uint64_t ns)
{
	histogram->count++;
	histogram->sum_ns += ns;
	if (ns > histogram->max_ns)
		histogram->max_ns = ns;
	histogram->bucket[bucket_of(ns)]++;
}

uint64_t histogram_quantile_ns(const struct histogram *histogram, double share)
{
	/* The buckets' own sum, not `count`: a reader may see the two a moment apart. */
	uint64_t total = 0;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++)
		total += histogram->bucket[i];
	if (total == 0)
		return 0;
	double rank = share * (double)total;
	uint64_t below = 0;
	for (unsigned i = 0; i < HISTOGRAM_BUCKETS; i++) {
		below += histogram->bucket[i];
		if (histogram->bucket[i] && (double)below >= rank) {
			bool unbounded = i == HISTOGRAM_BUCKETS - 1;
			return unbounded ? histogram->max_ns : DP_MIN(bucket_upper_bound(i), histogram->max_ns);
		}
	}
	return histogram->max_ns;
}

struct pager_stats *stats_map(const char *path, enum stats_mode mode, struct dp_err *err)
{
	static const int flags[] = {
		[STATS_READ] = O_RDONLY, [STATS_CREATE] = O_RDWR | O_CREAT | O_TRUNC, [STATS_GO_ON] = O_RDWR | O_CREAT
	};
	size_t bytes = sizeof(struct pager_stats);
	bool create = mode != STATS_READ;
	cleanup_fd int fd = open(path, flags[mode] | O_CLOEXEC, 0644);
	if (fd < 0) {
		dp_fail_errno(err, errno, "open statistics %s", path);
		return NULL;
	}
	struct stat info;
	if (create && ftruncate(fd, (off_t)bytes)) {
		dp_fail_errno(err, errno, "size statistics %s", path);
		return NULL;
	}
	if (fstat(fd, &info) || (uint64_t)info.st_size < bytes) {
		dp_fail(err, EBADMSG, "statistics %s were written by another version of distri-proc", path);
		return NULL;
	}
	struct pager_stats *stats = mmap(NULL, bytes, create ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
	if (stats == MAP_FAILED) {
		dp_fail_errno(err, errno, "map statistics %s", path);
		return NULL;
	}
	if (create) {
		stats->size = bytes;
		stats->started_ns = stats->started_ns ? stats->started_ns : clock_now_ns();
		__atomic_store_n(&stats->magic, STATS_MAGIC, __ATOMIC_RELEASE);
	} else if (__atomic_load_n(&stats->magic, __ATOMIC_ACQUIRE) != STATS_MAGIC) {
		stats_unmap(stats);
		dp_fail(err, EBADMSG, "%s holds no statistics", path);
		return NULL;
	}
	return stats;
}

bool stats_pager_left(const char *path)
{
	struct pager_stats *stats = stats_map(path, 0, NULL);
	bool left = stats && __atomic_load_n(&stats->left_ns, __ATOMIC_ACQUIRE);
	stats_unmap(stats);
	return left;
}

void stats_unmap(struct pager_stats *stats)
{
	if (stats)
		munmap(stats, sizeof(*stats));
}
