/* Snapshots in a persistent store: one manifest blob each, named after the snapshot with / as %. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "pool/journal.h"
#include "pool/manifest.h"
#include "pool/pool.h"
#include "transport/endpoint.h"

#define MANIFEST_SUFFIX ".manifest"
#define MANIFEST_LIMIT (UINT64_C(16) << 30)

void pool_blob_name(const char *name, const char *suffix, char blob[static POOL_BLOB_NAME_LIMIT])
{
	snprintf(blob, POOL_BLOB_NAME_LIMIT, "%s%s", name, suffix);
	for (char *at = blob; *at; at++)
		if (*at == '/')
			*at = '%';
}

struct encoding {
	struct manifest_writer *writer;
	const struct slots *slots;
};

static int add_page(void *context, uint64_t pgno, uint64_t slot)
{
	const struct encoding *encoding = context;

	manifest_add_page(encoding->writer, pgno, slot, encoding->slots->digests[slot]);
	return 0;
}

static int encode(const struct pool *pool, const struct object *snapshot, struct manifest_writer *writer)
{
	struct encoding encoding = { writer, &pool->slots };

	struct manifest_head head = { .created_unix_ns = snapshot->created_unix_ns,
				      .file_count = (uint32_t)snapshot->file_count,
				      .space_count = snapshot->space_count,
				      .name = { snapshot->name, (uint32_t)strlen(snapshot->name) },
				      .meta = { snapshot->meta, snapshot->meta_length } };

	manifest_begin(writer, &head);
	for (size_t i = 0; i < snapshot->file_count; i++)
		manifest_add_file(writer, snapshot->files[i].name, snapshot->files[i].content, snapshot->files[i].total);
	for (const struct space *space = snapshot->spaces; space; space = space->next) {
		manifest_add_space(writer, space->label);
		pagemap_walk(&space->map, add_page, &encoding);
		manifest_end_space(writer);
	}
	return manifest_end(writer);
}

int persist_save(struct pool *pool, const struct object *snapshot, struct dp_err *err)
{
	struct manifest_writer writer;
	char blob[POOL_BLOB_NAME_LIMIT];

	if (!pool->store->persistent)
		return 0;
	pool_blob_name(snapshot->name, MANIFEST_SUFFIX, blob);
	int result = encode(pool, snapshot, &writer);

	if (result == 0)
		result = pool->store->ops->blob_put(pool->store, blob, writer.bytes, writer.length);
	manifest_writer_done(&writer);
	return result < 0 ? dp_fail_errno(err, -result, "store snapshot %s", snapshot->name) : 0;
}

int persist_remove(struct pool *pool, const char *name, struct dp_err *err)
{
	char blob[POOL_BLOB_NAME_LIMIT];

	if (!pool->store->persistent)
		return 0;
	order_remove(pool, name);
	owner_remove(pool, name);
	pool_blob_name(name, MANIFEST_SUFFIX, blob);
	int result = pool->store->ops->blob_delete(pool->store, blob);

	return result < 0 ? dp_fail_errno(err, -result, "remove snapshot %s from the store", name) : 0;
}

/* ---- loading ---- */

struct load {
	struct pool *pool;
	uint64_t end_slot;
	struct dp_err *err;
	int result;
	char **names; /* blobs, listed before any is read */
	size_t count;
};

static int load_files(struct manifest_reader *reader, struct object *snapshot, uint32_t count)
{
	struct message_text name;
	struct message_bytes content;

	for (uint32_t i = 0; i < count; i++) {
		if (manifest_next_file(reader, &name, &content) < 0)
			return -EBADMSG;
		struct pool_file *files = reallocarray(snapshot->files, snapshot->file_count + 1, sizeof(*files));

		if (!files)
			return -ENOMEM;
		snapshot->files = files;
		struct pool_file *file = &files[snapshot->file_count++];

		*file = (struct pool_file){ .total = content.length,
					    .filled = content.length,
					    .content = malloc(content.length + 1) };
		if (!file->content)
			return -ENOMEM;
		memcpy(file->content, content.at, content.length);
		message_text_copy(name, file->name, sizeof(file->name));
		snapshot->file_bytes += content.length;
	}
	return 0;
}

/* Two snapshots that share a page must say the same of it. */
static bool load_digest(struct slots *slots, uint64_t slot, struct page_digest digest)
{
	if (page_digest_known(slots->digests[slot]) && page_digest_known(digest) &&
	    !page_digest_same(slots->digests[slot], digest))
		return false;
	if (page_digest_known(digest))
		slots->digests[slot] = digest;
	return true;
}

static int load_space(struct load *load, struct manifest_reader *reader, struct object *snapshot)
{
	struct slots *slots = &load->pool->slots;
	struct manifest_run run;
	uint64_t label;
	int more;

	if (manifest_next_space(reader, &label) < 0)
		return -EBADMSG;
	struct space *space = object_add_space(load->pool, snapshot, 0, label);

	if (!space)
		return -ENOMEM;
	while ((more = manifest_next_run(reader, &run)) > 0) {
		/* Slots beyond the heap's end: the heap was cut. */
		if (run.slot >= load->end_slot || run.pages > load->end_slot - run.slot)
			return -EBADMSG;
		snapshot->unverified |= !run.digests;
		for (uint32_t i = 0; i < run.pages; i++) {
			if (run.digests && !load_digest(slots, run.slot + i, message_digest_at(run.digests, i)))
				return -EBADMSG;
			slots_take(slots, run.slot + i);
			int result = pagemap_set(&space->map, run.pgno + i, run.slot + i);

			if (result < 0)
				return result;
		}
	}
	return more;
}

static int load_manifest(struct load *load, const char *blob, const void *bytes, uint64_t length)
{
	struct manifest_reader reader;
	struct manifest_head head;
	char name[256], normal[256], expected[POOL_BLOB_NAME_LIMIT];

	if (manifest_open(&reader, bytes, length, &head) < 0)
		return -EBADMSG;
	message_text_copy(head.name, name, sizeof(name));
	if (endpoint_name_check(name, normal, NULL) < 0 || strcmp(name, normal) != 0)
		return -EBADMSG;
	pool_blob_name(name, MANIFEST_SUFFIX, expected);
	if (strcmp(expected, blob) != 0)
		return -EBADMSG;
	load->pool->slots.accounts.payer = owner_load(load->pool, name, head.created_unix_ns);
	struct object *snapshot = object_new(load->pool, OBJECT_DRAFT, name, NULL);

	if (!snapshot)
		return -ENOMEM;
	snapshot->created_unix_ns = head.created_unix_ns;
	snapshot->meta = malloc(head.meta.length + 1u);
	if (!snapshot->meta)
		return -ENOMEM;
	snapshot->meta_length = head.meta.length;
	message_text_copy(head.meta, snapshot->meta, head.meta.length + 1u);
	int result = load_files(&reader, snapshot, head.file_count);

	accounts_charge(&load->pool->slots.accounts, snapshot->account, snapshot->file_bytes);

	for (uint32_t i = 0; result == 0 && i < head.space_count; i++)
		result = load_space(load, &reader, snapshot);
	if (result == 0)
		result = manifest_finish(&reader);
	if (result == 0) {
		order_load(load->pool, snapshot);
		pool_publish(load->pool, snapshot);
	}
	return result;
}

static int load_blob(struct load *load, const char *blob)
{
	struct store *store = load->pool->store;
	void *bytes = NULL;
	uint64_t length = 0;
	int result = store->ops->blob_get(store, blob, &bytes, &length, MANIFEST_LIMIT);

	if (result == 0)
		result = load_manifest(load, blob, bytes, length);
	load->pool->slots.accounts.payer = 0;
	free(bytes);
	if (result == -EBADMSG)
		return dp_fail(load->err, EBADMSG,
			       "%s is damaged; move it out of the store to open the rest (its pages are then lost for good)",
			       blob);
	return result < 0 ? dp_fail_errno(load->err, -result, "read %s", blob) : 0;
}

static int note_name(void *context, const char *name, uint64_t bytes)
{
	struct load *load = context;
	size_t length = strlen(name), suffix = strlen(MANIFEST_SUFFIX);

	if (length <= suffix || strcmp(name + length - suffix, MANIFEST_SUFFIX) != 0)
		return 0;
	char **names = reallocarray(load->names, load->count + 1, sizeof(*names));

	if (!names)
		return -ENOMEM;
	load->names = names;
	names[load->count] = strdup(name);
	return names[load->count++] ? 0 : -ENOMEM;
}

static bool slot_is_used(void *context, uint64_t slot)
{
	const struct slots *slots = context;

	return slot < slots->count && slots->references[slot] > 0;
}

int persist_load(struct pool *pool, struct dp_err *err)
{
	struct load load = { .pool = pool, .err = err };
	struct store_capacity capacity;
	int result;

	if (!pool->store->persistent)
		return 0;
	pool->store->ops->capacity(pool->store, &capacity);
	load.end_slot = capacity.end_slot;
	result = slots_reserve(&pool->slots, capacity.end_slot);
	if (result == 0)
		result = pool->store->ops->blob_list(pool->store, note_name, &load);
	if (result < 0)
		dp_fail_errno(err, -result, "list the snapshots of the store");
	for (size_t i = 0; i < load.count; i++) {
		if (result == 0 && load.names[i])
			result = load_blob(&load, load.names[i]);
		free(load.names[i]);
	}
	free(load.names);
	if (result == 0)
		result = journal_load(pool, err);
	if (result < 0)
		return result;
	result = pool->store->ops->adopt(pool->store, slot_is_used, &pool->slots);
	return result < 0 ? dp_fail_errno(err, -result, "two things claim the same place in the store") : 0;
}
