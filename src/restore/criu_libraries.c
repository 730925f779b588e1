#include "restore/criu_libraries.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "base/log.h"
#include "restore/criu_cache.h"
#include "sys/criu.h"

static const char *const libraries[] = { "libgnutls.so.30", "libnftables.so.1" };

/* They lie where this program was built, or where it was installed. The newest one's time says which build. */
static bool find_libraries(char *preload, size_t size, time_t *built)
{
	static const char *const places[] = { "src/restore", "../libexec/distri-proc" };
	char program[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	if (length <= 0)
		return false;
	program[length] = 0;
	char *slash = strrchr(program, '/');
	if (!slash || strpbrk(program, " :")) /* what LD_PRELOAD takes for the end of a name */
		return false;
	*slash = 0;
	for (size_t i = 0; i < ARRAY_LENGTH(places); i++) {
		size_t used = 0, found = 0;
		*built = 0;
		for (size_t j = 0; j < ARRAY_LENGTH(libraries) && used < size; j++) {
			struct stat info;
			size_t start = used + (j > 0);
			used += (size_t)snprintf(preload + used, size - used, "%s%s/%s/%s", j ? ":" : "", program, places[i],
						 libraries[j]);
			found += used < size && !stat(preload + start, &info) && S_ISREG(info.st_mode);
			*built = DP_MAX(*built, info.st_mtime);
		}
		if (found == ARRAY_LENGTH(libraries))
			return true;
	}
	return false;
}

/* With every symbol looked up at once, the loader fails where one is missing. */
static bool do_fit(const char *criu_path, const char *preload)
{
	return criu_run_quietly(criu_path, preload, (const char *const[]){ criu_path, "--version", NULL }) == 0;
}

void criu_libraries_prepare(const char *criu_path, char *preload, size_t size)
{
	struct stat info, kept;
	char path[PATH_MAX];
	time_t built;
	if (getenv("LD_PRELOAD") || !find_libraries(preload, size, &built) || stat(criu_path, &info) || !criu_cache_directory()) {
		*preload = 0;
		return;
	}
	/* The file's length is the answer: 1 for yes. */
	snprintf(path, sizeof(path), "%s/.criu-%llx-%llx-%llx.libraries", criu_cache_directory(),
		 (unsigned long long)info.st_mtim.tv_sec, (unsigned long long)info.st_size, (unsigned long long)built);
	bool known = !lstat(path, &kept) && S_ISREG(kept.st_mode) && kept.st_uid == geteuid();
	bool fit = known ? kept.st_size == 1 : do_fit(criu_path, preload);
	if (!known && io_write_file(path, "y", fit, 0600))
		log_debug("%s cannot be written; criu's libraries are tried at every restore", path);
	if (!fit)
		*preload = 0;
}
