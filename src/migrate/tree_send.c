/* tree_copy: the side that has the tree. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/linkhash.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <time.h>

#include "base/base.h"
#include "migrate/tree_copy.h"
#include "sys/proc.h"

#define ANSWER_MS 60000
#define PART_ENTRIES 500u   /* of a directory in one line, */
#define PART_BYTES (256u << 10) /* or so much text */
#define CHUNK_BYTES (256u << 10)
#define RACY_NS INT64_C(100000000) /* the kernel's time of a change is some milliseconds coarse */
#define DEPTH_MOST 200u
#define XATTRS_BYTES 4096u

/* What a name was in the first pass. */
struct record {
	ino_t inode;
	int64_t changed_ns;
	off_t size;
	bool racy;
};

struct tree_sender {
	int root_fd;
	dev_t device;
	char root[PATH_MAX];
	uint64_t limit_bytes, sent_bytes;
	struct lh_table *records; /* of paths; a directory's own is the count of its names, under its path and a slash */
	json_object *mapped;      /* paths and inodes of files that are mapped shared and writable; in the second pass */
	bool second;
	struct lines *peer;
	struct dp_err *err;
};

/* One directory, while it is told of. */
struct listing {
	struct tree_sender *sender;
	int fd;
	const char *path; /* from the root; "" is the root */
	struct dirent **entries;
	int count;
	bool changed;
	json_object *part;   /* entries that are not sent yet */
	size_t part_bytes;
	json_object *fresh;  /* files whose content goes unasked */
};

/* ---- what is known ---- */

static void free_record(struct lh_entry *entry)
{
	free((void *)(uintptr_t)entry->k);
	free((void *)(uintptr_t)entry->v);
}

int tree_sender_open(struct tree_sender **sender, const char *root, uint64_t limit_bytes, struct dp_err *err)
{
	struct stat info;
	struct tree_sender *made = calloc(1, sizeof(*made));
	if (!made || strlen(root) >= sizeof(made->root)) {
		free(made);
		return dp_fail(err, ENOMEM, "out of memory");
	}
	strcpy(made->root, root);
	made->limit_bytes = limit_bytes;
	made->root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	made->records = lh_kchar_table_new(4096, free_record);
	if (made->root_fd < 0 || fstat(made->root_fd, &info) || !made->records) {
		int code = made->root_fd < 0 ? errno : ENOMEM;
		tree_sender_free(made);
		return dp_fail_errno(err, code, "open %s", root);
	}
	made->device = info.st_dev;
	*sender = made;
	return 0;
}

void tree_sender_free(struct tree_sender *sender)
{
	if (!sender)
		return;
	dp_close_fd(&sender->root_fd);
	if (sender->records)
		lh_table_free(sender->records);
	json_object_put(sender->mapped);
	free(sender);
}

uint64_t tree_sender_bytes(const struct tree_sender *sender)
{
	return sender->sent_bytes;
}

static int64_t ns_of(const struct timespec *time)
{
	return (int64_t)time->tv_sec * 1000000000 + time->tv_nsec;
}

static struct record record_of(const struct stat *info)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	return (struct record){ info->st_ino, ns_of(&info->st_ctim), info->st_size,
				ns_of(&info->st_ctim) + RACY_NS > ns_of(&now) };
}

static int remember(struct tree_sender *sender, const char *path, struct record record)
{
	struct record *copy = malloc(sizeof(*copy));
	char *key = strdup(path);
	struct lh_entry *old = key ? lh_table_lookup_entry(sender->records, path) : NULL;
	if (copy)
		*copy = record;
	if (old)
		lh_table_delete_entry(sender->records, old);
	if (copy && key && !lh_table_insert(sender->records, key, copy))
		return 0;
	free(copy);
	free(key);
	return -ENOMEM;
}

static const struct record *recall(const struct tree_sender *sender, const char *path)
{
	void *found = NULL;
	return lh_table_lookup_ex(sender->records, path, &found) ? found : NULL;
}

/* ---- files that processes write to by memory ---- */

static void find_mapped(struct tree_sender *sender, pid_t root)
{
	cleanup_free pid_t *pids = NULL;
	ssize_t count = proc_tree(root, &pids);
	for (ssize_t i = 0; i < count; i++) {
		char path[64], line[PATH_MAX + 128], rights[8], key[32];
		unsigned long long inode;
		snprintf(path, sizeof(path), "/proc/%d/maps", (int)pids[i]);
		cleanup_file FILE *maps = fopen(path, "re");
		while (maps && fgets(line, sizeof(line), maps)) {
			int name = 0;
			line[strcspn(line, "\n")] = 0;
			if (sscanf(line, "%*s %7s %*s %*s %llu %n", rights, &inode, &name) < 2 || strcmp(rights, "rw-s") || !inode)
				continue;
			snprintf(key, sizeof(key), "%llu", inode);
			json_object_object_add(sender->mapped, key, NULL);
			if (name && line[name] == '/')
				json_object_object_add(sender->mapped, line + name, NULL);
		}
	}
}

static bool is_mapped(const struct tree_sender *sender, const char *path, const struct stat *info)
{
	char key[32], name[PATH_MAX + 1];
	snprintf(key, sizeof(key), "%llu", (unsigned long long)info->st_ino);
	snprintf(name, sizeof(name), "/%s", path);
	return json_object_object_get_ex(sender->mapped, key, NULL) || json_object_object_get_ex(sender->mapped, name, NULL);
}

static bool has_changed(const struct tree_sender *sender, const char *path, const struct stat *info)
{
	const struct record *record = recall(sender, path);
	return !record || record->racy || record->inode != info->st_ino || record->changed_ns != ns_of(&info->st_ctim) ||
	       (!S_ISDIR(info->st_mode) && record->size != info->st_size) ||
	       (S_ISREG(info->st_mode) && is_mapped(sender, path, info));
}

/* ---- what is said ---- */

static const char *kind_of(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG: return "f";
	case S_IFDIR: return "d";
	case S_IFLNK: return "l";
	case S_IFIFO: return "p";
	case S_IFCHR: return "c";
	case S_IFBLK: return "b";
	default: return NULL;
	}
}

static void add_hex(json_object *object, const char *name, const unsigned char *bytes, size_t count)
{
	char text[2 * XATTRS_BYTES + 1];
	for (size_t i = 0; i < count; i++)
		snprintf(text + 2 * i, 3, "%02x", bytes[i]);
	text[2 * count] = 0;
	line_add_text(object, name, text);
}

/* Of files and directories; what the label of a security module is, is the other host's business. */
static void add_attributes(json_object *entry, int directory, const char *name)
{
	char names[XATTRS_BYTES];
	unsigned char value[XATTRS_BYTES];
	cleanup_fd int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : flistxattr(fd, names, sizeof(names));
	json_object *attributes = length > 0 ? json_object_new_object() : NULL;
	for (const char *at = names; length > 0 && at < names + length; at += strlen(at) + 1) {
		ssize_t got = strcmp(at, "security.selinux") ? fgetxattr(fd, at, value, sizeof(value)) : -1;
		if (got >= 0)
			add_hex(attributes, at, value, (size_t)got);
	}
	if (attributes)
		json_object_object_add(entry, "attributes", attributes);
}

static json_object *entry_of(int directory, const char *name, const struct stat *info)
{
	char target[PATH_MAX];
	json_object *entry = json_object_new_object();
	line_add_text(entry, "name", name);
	line_add_text(entry, "type", kind_of(info->st_mode));
	line_add_number(entry, "mode", info->st_mode & 07777);
	line_add_number(entry, "uid", info->st_uid);
	line_add_number(entry, "gid", info->st_gid);
	if (S_ISREG(info->st_mode)) {
		line_add_number(entry, "size", (uint64_t)info->st_size);
		json_object_object_add(entry, "mtime_ns", json_object_new_int64(ns_of(&info->st_mtim)));
	}
	if (S_ISCHR(info->st_mode) || S_ISBLK(info->st_mode)) {
		line_add_number(entry, "major", major(info->st_rdev));
		line_add_number(entry, "minor", minor(info->st_rdev));
	}
	if (S_ISLNK(info->st_mode)) {
		ssize_t length = readlinkat(directory, name, target, sizeof(target) - 1);
		target[length > 0 ? length : 0] = 0;
		line_add_text(entry, "target", target);
	}
	if (S_ISREG(info->st_mode) || S_ISDIR(info->st_mode))
		add_attributes(entry, directory, name);
	return entry;
}

/* ---- contents ---- */

static int lost(struct tree_sender *sender, int ret)
{
	json_object *answer = NULL;
	/* It may have said why before it went. */
	if (lines_receive(sender->peer, &answer, 1000) == 0 && line_text(answer, "text"))
		dp_fail(sender->err, EIO, "%s", line_text(answer, "text"));
	else
		dp_fail_errno(sender->err, ret == -EAGAIN ? ETIMEDOUT : -ret, "the other host does not take files");
	json_object_put(answer);
	return -EIO;
}

/* As many bytes as were said; those that a file has lost meanwhile are zeros, and it has changed then. */
static int send_bytes(struct tree_sender *sender, int fd, uint64_t bytes)
{
	cleanup_free char *chunk = malloc(CHUNK_BYTES);
	if (!chunk)
		return dp_fail(sender->err, ENOMEM, "out of memory");
	for (uint64_t done = 0; done < bytes;) {
		size_t wanted = (size_t)DP_MIN(bytes - done, CHUNK_BYTES);
		ssize_t got = pread(fd, chunk, wanted, (off_t)done);
		if (got < 0)
			return dp_fail_errno(sender->err, errno, "read a file of %s", sender->root);
		if (!got) {
			memset(chunk, 0, wanted);
			got = (ssize_t)wanted;
		}
		int ret = lines_send_bytes(sender->peer, chunk, (size_t)got, ANSWER_MS);
		if (ret)
			return lost(sender, ret);
		done += (uint64_t)got;
	}
	return 0;
}

static int send_file(struct listing *listing, const char *name)
{
	struct tree_sender *sender = listing->sender;
	struct stat info;
	char most[32];
	cleanup_fd int fd = openat(listing->fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &info) || !S_ISREG(info.st_mode))
		return 0; /* it went meanwhile, and the directory has changed then */
	sender->sent_bytes += (uint64_t)info.st_size;
	if (sender->sent_bytes > sender->limit_bytes)
		return dp_fail(sender->err, EFBIG, "%s has more that the other host has not than may be copied (%s): bring the same files "
			       "there, or allow more (--rootfs-limit)", sender->root,
			       format_size(sender->limit_bytes, most, sizeof(most)));
	json_object *line = line_op("file");
	line_add_text(line, "dir", listing->path);
	json_object_object_add(line, "entry", entry_of(listing->fd, name, &info));
	int ret = lines_send(sender->peer, line, ANSWER_MS);
	return ret ? lost(sender, ret) : send_bytes(sender, fd, (uint64_t)info.st_size);
}

static int send_names(struct listing *listing, json_object *names)
{
	int ret = 0;
	for (size_t i = 0; json_object_is_type(names, json_type_array) && i < json_object_array_length(names) && !ret; i++) {
		const char *name = json_object_get_string(json_object_array_get_idx(names, i));
		if (name && *name && !strchr(name, '/'))
			ret = send_file(listing, name);
	}
	return ret;
}

/* ---- a directory ---- */

static int send_part(struct listing *listing, bool more)
{
	struct tree_sender *sender = listing->sender;
	json_object *line = line_op("dir");
	line_add_text(line, "dir", listing->path);
	json_object_object_add(line, "entries", listing->part ? listing->part : json_object_new_array());
	line_add_flag(line, "more", more);
	line_add_flag(line, "push", sender->second);
	listing->part = NULL;
	listing->part_bytes = 0;
	int ret = lines_send(sender->peer, line, ANSWER_MS);
	return ret ? lost(sender, ret) : 0;
}

static int add_entry(struct listing *listing, json_object *entry)
{
	if (!listing->part)
		listing->part = json_object_new_array();
	listing->part_bytes += strlen(json_object_to_json_string_ext(entry, JSON_C_TO_STRING_PLAIN));
	json_object_array_add(listing->part, entry);
	bool full = json_object_array_length(listing->part) >= PART_ENTRIES || listing->part_bytes >= PART_BYTES;
	return full ? send_part(listing, true) : 0;
}

static char *path_below(const char *path, const char *name)
{
	return format_text("%s%s%s", path, *path ? "/" : "", name);
}

/* In the first pass every name is told of; in the second they are looked at first, and told of where one has changed. */
static int each_name(struct listing *listing, int (*each)(struct listing *listing, const char *name, const char *path,
							  const struct stat *info))
{
	int ret = 0;
	for (int i = 0; i < listing->count && !ret; i++) {
		const char *name = listing->entries[i]->d_name;
		struct stat info;
		if (!strcmp(name, ".") || !strcmp(name, "..") || fstatat(listing->fd, name, &info, AT_SYMLINK_NOFOLLOW) ||
		    !kind_of(info.st_mode))
			continue;
		cleanup_free char *path = path_below(listing->path, name);
		ret = path ? each(listing, name, path, &info) : dp_fail(listing->sender->err, ENOMEM, "out of memory");
	}
	return ret;
}

static int look(struct listing *listing, const char *name, const char *path, const struct stat *info)
{
	(void)name;
	listing->changed = listing->changed || has_changed(listing->sender, path, info);
	return 0;
}

static int tell(struct listing *listing, const char *name, const char *path, const struct stat *info)
{
	struct tree_sender *sender = listing->sender;
	json_object *entry = entry_of(listing->fd, name, info);
	if (sender->second && S_ISREG(info->st_mode) && has_changed(sender, path, info))
		json_object_array_add(listing->fresh, json_object_new_string(name));
	else if (!sender->second && remember(sender, path, record_of(info)))
		return dp_fail(sender->err, ENOMEM, "out of memory");
	return add_entry(listing, entry);
}

static int answer_needs(struct listing *listing)
{
	struct tree_sender *sender = listing->sender;
	json_object *answer, *names = NULL;
	int ret = lines_receive(sender->peer, &answer, ANSWER_MS);
	if (ret)
		return lost(sender, ret);
	const char *event = line_text(answer, "event"), *text = line_text(answer, "text");
	json_object_object_get_ex(answer, "names", &names);
	if (!event || strcmp(event, "need") != 0)
		ret = dp_fail(sender->err, EIO, "%s", text ? text : "the other host says what was not asked for");
	else
		ret = send_names(listing, names);
	json_object_put(answer);
	return ret;
}

static int tell_directory(struct listing *listing)
{
	struct tree_sender *sender = listing->sender;
	cleanup_free char *own = format_text("%s/", listing->path);
	const struct record *before = own ? recall(sender, own) : NULL;
	int ret = 0;
	if (sender->second) {
		listing->changed = !before || before->size != listing->count;
		ret = each_name(listing, look);
		if (ret || !listing->changed)
			return ret;
	} else if (!own || remember(sender, own, (struct record){ .size = listing->count })) {
		return dp_fail(sender->err, ENOMEM, "out of memory");
	}
	listing->fresh = json_object_new_array();
	ret = each_name(listing, tell);
	if (!ret)
		ret = send_part(listing, false);
	if (!ret)
		ret = sender->second ? send_names(listing, listing->fresh) : answer_needs(listing);
	json_object_put(listing->fresh);
	json_object_put(listing->part);
	return ret;
}

static int send_directory(struct tree_sender *sender, int fd, const char *path, unsigned depth);

/* Those below, each by its own name, for as long as it is one of this file system. */
static int send_below(struct listing *listing, unsigned depth)
{
	int ret = 0;
	for (int i = 0; i < listing->count && !ret; i++) {
		const char *name = listing->entries[i]->d_name;
		struct stat info;
		if (!strcmp(name, ".") || !strcmp(name, "..") || (listing->entries[i]->d_type != DT_DIR &&
								   listing->entries[i]->d_type != DT_UNKNOWN))
			continue;
		cleanup_fd int fd = openat(listing->fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &info) || info.st_dev != listing->sender->device)
			continue;
		cleanup_free char *path = path_below(listing->path, name);
		ret = path ? send_directory(listing->sender, fd, path, depth + 1) :
			     dp_fail(listing->sender->err, ENOMEM, "out of memory");
	}
	return ret;
}

static int send_directory(struct tree_sender *sender, int fd, const char *path, unsigned depth)
{
	struct listing listing = { .sender = sender, .fd = fd, .path = path };
	if (depth > DEPTH_MOST)
		return dp_fail(sender->err, ELOOP, "%s has more than %u directories below each other", sender->root, DEPTH_MOST);
	listing.count = scandirat(fd, ".", &listing.entries, NULL, NULL);
	if (listing.count < 0)
		return dp_fail_errno(sender->err, errno, "read %s/%s", sender->root, path);
	int ret = tell_directory(&listing);
	if (!ret)
		ret = send_below(&listing, depth);
	for (int i = 0; i < listing.count; i++)
		free(listing.entries[i]);
	free(listing.entries);
	return ret;
}

int tree_send(struct tree_sender *sender, struct lines *peer, pid_t pid, struct dp_err *err)
{
	json_object *answer = NULL;
	sender->peer = peer;
	sender->err = err;
	sender->second = pid > 0;
	if (sender->second) {
		sender->mapped = json_object_new_object();
		find_mapped(sender, pid);
	}
	int ret = send_directory(sender, sender->root_fd, "", 0);
	if (ret)
		return ret;
	ret = lines_send(peer, line_op("same"), ANSWER_MS);
	if (!ret)
		ret = lines_receive(peer, &answer, ANSWER_MS);
	if (ret)
		return lost(sender, ret);
	const char *event = line_text(answer, "event"), *text = line_text(answer, "text");
	if (!event || strcmp(event, "same") != 0)
		ret = dp_fail(err, EIO, "%s", text ? text : "the other host says what was not asked for");
	json_object_put(answer);
	return ret;
}
