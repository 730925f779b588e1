/* The regular files of a snapshot, and whether this host has the same. CRIU finds a difference only in the middle of a
 * restore and one at a time; here all are named before anything starts. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/base.h"
#include "image/criu.pb-c.h"
#include "image/decode.h"
#include "image/frame.h"

#define FILE_TYPE_REGULAR 1 /* fd_types.REG of CRIU */
#define ELF_HEAD_BYTES (64u << 10) /* no file seen has its build id behind them */
#define ELF_FIRST_BYTES 4096u      /* most have it in these */

struct id_list {
	uint32_t *ids;
	size_t count;
};

static bool id_listed(const struct id_list *list, uint32_t id)
{
	for (size_t i = 0; i < list->count; i++)
		if (list->ids[i] == id)
			return true;
	return false;
}

/* Ids of the files that were deleted while open: CRIU carries them with it, the host need not have them. */
static int decode_remaps(const void *bytes, size_t length, struct id_list *list, struct dp_err *err)
{
	struct image_frame frame;
	const unsigned char *record;
	size_t size;
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_REMAP, "remap-fpath.img", err);
	if (rc < 0)
		return rc;
	list->ids = calloc(frame.left / 4 + 1, sizeof(*list->ids)); /* a record has at least its 4 bytes of length */
	if (!list->ids)
		return dp_fail_errno(err, ENOMEM, "remap-fpath.img");
	while ((rc = image_frame_next(&frame, &record, &size, err)) > 0) {
		Criu__RemapEntry *entry = criu__remap_entry__unpack(NULL, size, record);
		if (!entry)
			return image_frame_bad(&frame, err, "a record that cannot be read");
		if (entry->has_orig_id)
			list->ids[list->count++] = entry->orig_id;
		criu__remap_entry__free_unpacked(entry, NULL);
	}
	return rc;
}

/* Only what a host must have: files by path. Those of /proc belong to processes, not to the host. */
static bool is_wanted(const Criu__FileEntry *entry, const struct id_list *deleted)
{
	const Criu__RegFile *reg = entry->reg;
	return entry->type == FILE_TYPE_REGULAR && reg && reg->name && reg->name[0] == '/' && !reg->ext &&
	       strncmp(reg->name, "/proc/", 6) != 0 && !(entry->has_id && id_listed(deleted, entry->id));
}

static int take_file(const struct image_frame *frame, const Criu__RegFile *reg, struct image_file *file, struct dp_err *err)
{
	if (reg->n_build_id * sizeof(uint32_t) > sizeof(file->build_id))
		return image_frame_bad(frame, err, "a build id longer than any");
	bool regular = reg->has_size && (!reg->has_mode || S_ISREG(reg->mode));
	*file = (struct image_file){.path = strdup(reg->name), .size_bytes = regular ? reg->size : UINT64_MAX,
				    .build_id_bytes = reg->n_build_id * sizeof(uint32_t)};
	if (!file->path)
		return dp_fail_errno(err, ENOMEM, "files.img");
	if (file->build_id_bytes)
		memcpy(file->build_id, reg->build_id, file->build_id_bytes);
	return 0;
}

static int compare_paths(const void *left, const void *right)
{
	return strcmp(((const struct image_file *)left)->path, ((const struct image_file *)right)->path);
}

/* One entry a path: a file that is open ten times differs once. */
static size_t drop_doubles(struct image_file *files, size_t count)
{
	size_t kept = 0;
	if (count > 1)
		qsort(files, count, sizeof(*files), compare_paths);
	for (size_t i = 0; i < count; i++) {
		if (kept > 0 && strcmp(files[kept - 1].path, files[i].path) == 0)
			free(files[i].path);
		else
			files[kept++] = files[i];
	}
	return kept;
}

static int decode_entries(struct image_frame *frame, const struct id_list *deleted, struct image_file *files, size_t *count,
			  struct dp_err *err)
{
	const unsigned char *record;
	size_t size;
	int rc;
	while ((rc = image_frame_next(frame, &record, &size, err)) > 0) {
		Criu__FileEntry *entry = criu__file_entry__unpack(NULL, size, record);
		if (!entry)
			return image_frame_bad(frame, err, "a record that cannot be read");
		rc = is_wanted(entry, deleted) ? take_file(frame, entry->reg, &files[*count], err) : 1;
		criu__file_entry__free_unpacked(entry, NULL);
		if (rc < 0)
			return rc;
		if (rc == 0)
			(*count)++;
	}
	return rc;
}

int image_decode_files(const void *bytes, size_t length, const void *remaps, size_t remaps_length, struct image_file **files,
		       size_t *count, struct dp_err *err)
{
	struct image_frame frame;
	struct id_list deleted = {0};
	int rc = image_frame_open(&frame, bytes, length, IMAGE_MAGIC_FILES, "files.img", err);
	if (rc == 0 && remaps)
		rc = decode_remaps(remaps, remaps_length, &deleted, err);
	struct image_file *array = NULL;
	size_t used = 0;
	if (rc == 0) {
		array = calloc(frame.left / 4 + 1, sizeof(*array));
		rc = array ? decode_entries(&frame, &deleted, array, &used, err) : dp_fail_errno(err, ENOMEM, "files.img");
	}
	free(deleted.ids);
	if (rc < 0) {
		image_files_free(array, used);
		return rc;
	}
	*count = drop_doubles(array, used);
	*files = array;
	return 0;
}

int images_read_files(int images_fd, struct image_file **files, size_t *count, struct dp_err *err)
{
	cleanup_free char *bytes = NULL, *remaps = NULL;
	ssize_t length = image_load(images_fd, "files.img", &bytes, err);
	if (length < 0)
		return (int)length;
	ssize_t remaps_length = 0;
	if (faccessat(images_fd, "remap-fpath.img", F_OK, 0) == 0) {
		remaps_length = image_load(images_fd, "remap-fpath.img", &remaps, err);
		if (remaps_length < 0)
			return (int)remaps_length;
	}
	return image_decode_files(bytes, (size_t)length, remaps, (size_t)remaps_length, files, count, err);
}

void image_files_free(struct image_file *files, size_t count)
{
	for (size_t i = 0; i < count; i++)
		free(files[i].path);
	free(files);
}

/* ---- build ids ---- */

/* Notes are {name length, description length, type, name, description}, each part padded to 4 bytes. */
static int find_note(const unsigned char *at, size_t left, unsigned char id[static 32], size_t *id_bytes)
{
	while (left >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr note;
		memcpy(&note, at, sizeof(note));
		at += sizeof(note);
		left -= sizeof(note);
		uint64_t name_bytes = ((uint64_t)note.n_namesz + 3) & ~3ull,
			 content_bytes = ((uint64_t)note.n_descsz + 3) & ~3ull;
		if (name_bytes + content_bytes > left)
			return 0;
		if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && memcmp(at, "GNU", 4) == 0 && note.n_descsz > 0 &&
		    note.n_descsz <= 32) {
			memset(id, 0, 32);
			memcpy(id, at + name_bytes, note.n_descsz);
			*id_bytes = content_bytes; /* CRIU records whole words */
			return 1;
		}
		at += name_bytes + content_bytes;
		left -= name_bytes + content_bytes;
	}
	return 0;
}

int image_elf_build_id(const void *bytes, size_t length, unsigned char id[static 32], size_t *id_bytes)
{
	const unsigned char *file = bytes;
	Elf64_Ehdr head;
	if (length < sizeof(head))
		return -EBADMSG;
	memcpy(&head, file, sizeof(head));
	unsigned char order = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? ELFDATA2LSB : ELFDATA2MSB;
	if (memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64 ||
	    head.e_ident[EI_DATA] != order || head.e_phentsize != sizeof(Elf64_Phdr))
		return -EBADMSG;
	for (unsigned i = 0; i < head.e_phnum; i++) {
		Elf64_Phdr part;
		if (head.e_phoff > length || length - head.e_phoff < (i + 1) * sizeof(part))
			return 0;
		memcpy(&part, file + head.e_phoff + i * sizeof(part), sizeof(part));
		if (part.p_type != PT_NOTE || part.p_offset > length || part.p_filesz > length - part.p_offset)
			continue;
		if (find_note(file + part.p_offset, part.p_filesz, id, id_bytes))
			return 1;
	}
	return 0;
}

/* ---- comparing with this host ---- */

static int open_below(int root_fd, const char *path)
{
	int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	if (root_fd == AT_FDCWD)
		return open(path, flags);
	struct open_how how = {.flags = (uint64_t)flags, .resolve = RESOLVE_IN_ROOT};
	return (int)syscall(SYS_openat2, root_fd, path, &how, sizeof(how));
}

static int stat_below(int root_fd, const char *path, struct stat *status)
{
	if (root_fd == AT_FDCWD)
		return stat(path, status) < 0 ? -errno : 0;
	struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
	cleanup_fd int fd = (int)syscall(SYS_openat2, root_fd, path, &how, sizeof(how));
	if (fd < 0)
		return -errno;
	return fstat(fd, status) < 0 ? -errno : 0;
}

static bool build_id_differs(int root_fd, const struct image_file *file)
{
	cleanup_fd int fd = open_below(root_fd, file->path);
	cleanup_free char *head = fd < 0 ? NULL : malloc(ELF_HEAD_BYTES);
	unsigned char id[32];
	size_t id_bytes;
	int found = 0;
	for (size_t bytes = ELF_FIRST_BYTES; head && found == 0 && bytes <= ELF_HEAD_BYTES;
	     bytes *= ELF_HEAD_BYTES / ELF_FIRST_BYTES) {
		ssize_t got = pread(fd, head, bytes, 0);
		if (got < 0)
			return false; /* cannot tell; CRIU will */
		found = image_elf_build_id(head, (size_t)got, id, &id_bytes);
	}
	return found == 1 && (id_bytes != file->build_id_bytes || memcmp(id, file->build_id, id_bytes) != 0);
}

/* What is wrong with this host's copy, or NULL. */
static const char *check_file(int root_fd, const struct image_file *file, char *reason, size_t size)
{
	struct stat status;
	int rc = stat_below(root_fd, file->path, &status);
	if (rc < 0) {
		snprintf(reason, size, "%s", rc == -ENOENT ? "is missing here" : strerror(-rc));
		return reason;
	}
	if (file->size_bytes != UINT64_MAX && (uint64_t)status.st_size != file->size_bytes) {
		snprintf(reason, size, "has %lld bytes here, %llu in the snapshot", (long long)status.st_size,
			 (unsigned long long)file->size_bytes);
		return reason;
	}
	if (file->build_id_bytes > 0 && build_id_differs(root_fd, file)) {
		snprintf(reason, size, "is another build here (its build id differs)");
		return reason;
	}
	return NULL;
}

int images_check_files(int root_fd, const struct image_file *files, size_t count, char **report)
{
	int differing = 0;
	char reason[160];
	*report = NULL;
	for (size_t i = 0; i < count; i++) {
		if (!check_file(root_fd, &files[i], reason, sizeof(reason)))
			continue;
		differing++;
		char *longer = format_text("%s%s %s\n", *report ? *report : "", files[i].path, reason);
		if (!longer)
			continue; /* the count still says how many */
		free(*report);
		*report = longer;
	}
	return differing;
}
