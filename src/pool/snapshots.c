/* Drafts, snapshots, instances, leases. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "pool/journal.h"
#include "pool/pool.h"

/* The snapshot goes: journals of its instances must not refer to it any more. */
static int release_base(struct pool *pool, const struct object *snapshot)
{
	int result = 0;

	for (struct object *object = pool->all; object && result == 0 && snapshot->instances; object = object->next)
		if (object->kind == OBJECT_INSTANCE && object->base == snapshot->id && object->journal)
			result = journal_rewrite(pool, object);
	return result;
}

static int find_draft(struct pool *pool, const void *owner, uint64_t id, struct object **draft, struct dp_err *err)
{
	*draft = pool_object(pool, id, OBJECT_DRAFT);
	if (!*draft)
		return dp_fail(err, ENOENT, "there is no such draft");
	if ((*draft)->owner != owner)
		return dp_fail(err, EPERM, "the draft of %s belongs to another connection", (*draft)->name);
	return 0;
}

/* A draft that may still be written to. */
static int find_open_draft(struct pool *pool, const void *owner, uint64_t id, struct object **draft, struct dp_err *err)
{
	int result = find_draft(pool, owner, id, draft, err);

	return result == 0 && (*draft)->committing ? dp_fail(err, EROFS, "the draft of %s was committed", (*draft)->name)
						   : result;
}

static int name_taken(const char *name, struct dp_err *err)
{
	return dp_fail(err, EEXIST, "snapshot %s exists; use --force to replace it", name);
}

int pool_snapshot_begin(struct pool *pool, const void *owner, const char *name, bool replace, uint64_t *draft, struct dp_err *err)
{
	unsigned drafts = 0;

	if (!replace && pool_snapshot(pool, name))
		return name_taken(name, err);
	for (const struct object *object = pool->all; object; object = object->next)
		drafts += object->kind == OBJECT_DRAFT && object->owner == owner;
	if (pool->snapshot_count >= SNAPSHOTS_LIMIT)
		return dp_fail(err, EMFILE, "the pool holds %d snapshots, and takes no more", SNAPSHOTS_LIMIT);
	if (drafts >= DRAFTS_PER_OWNER_LIMIT)
		return dp_fail(err, EMFILE, "more than %d drafts on one connection", DRAFTS_PER_OWNER_LIMIT);
	struct object *object = object_new(pool, OBJECT_DRAFT, name, owner);

	if (!object)
		return dp_fail(err, ENOMEM, "the pool is out of memory");
	object->replace = replace;
	*draft = object->id;
	return 0;
}

int pool_snapshot_space(struct pool *pool, const void *owner, uint64_t id, uint64_t label, uint64_t *space_id, struct dp_err *err)
{
	struct object *draft;
	int result = find_open_draft(pool, owner, id, &draft, err);

	if (result < 0)
		return result;
	if (draft->space_count >= SPACES_PER_OBJECT_LIMIT)
		return dp_fail(err, EINVAL, "too many spaces in the draft of %s", draft->name);
	struct space *space = object_add_space(pool, draft, 0, label);

	if (!space)
		return dp_fail(err, ENOMEM, "the pool is out of memory");
	*space_id = space->id;
	return 0;
}

int pool_snapshot_inherit(struct pool *pool, const void *owner, uint64_t draft_space, uint64_t source_id, struct page_range range,
			  struct dp_err *err)
{
	struct space *space = pool_space(pool, draft_space), *source = pool_space(pool, source_id);

	if (!space || !source)
		return dp_fail(err, ENOENT, "there is no such space");
	if (space->object->kind != OBJECT_DRAFT)
		return dp_fail(err, EROFS, "only the space of a draft can inherit pages");
	if (space->object->owner != owner)
		return dp_fail(err, EPERM, "the draft of %s belongs to another connection", space->object->name);
	if (space->object->committing)
		return dp_fail(err, EROFS, "the draft of %s was committed", space->object->name);
	if (source->object->kind == OBJECT_DRAFT)
		return dp_fail(err, EINVAL, "pages can be inherited from a snapshot or an instance only");
	int result = pagemap_drop(&space->map, range.pgno, range.pages);

	if (result == 0)
		result = pagemap_copy(&space->map, &source->map, range.pgno, range.pgno, range.pages);
	if (result < 0) {
		space->object->failed = -result;
		return dp_fail(err, -result, "the pool is out of memory");
	}
	return 0;
}

/* The file of that name, emptied, or a new one. */
static struct pool_file *start_file(struct pool *pool, struct object *draft, const char *name)
{
	struct pool_file *file = (struct pool_file *)pool_file_find(draft, name);

	if (!file) {
		struct pool_file *files = reallocarray(draft->files, draft->file_count + 1, sizeof(*files));

		if (!files)
			return NULL;
		draft->files = files;
		file = &files[draft->file_count++];
		*file = (struct pool_file){ 0 };
		snprintf(file->name, sizeof(file->name), "%s", name);
	}
	free(file->content);
	draft->file_bytes -= file->filled;
	accounts_refund(&pool->slots.accounts, draft->account, file->filled);
	file->content = NULL;
	file->filled = 0;
	return file;
}

int pool_snapshot_file(struct pool *pool, const void *owner, uint64_t id, const char *name, uint64_t total, uint64_t offset,
		       const void *content, uint64_t bytes, struct dp_err *err)
{
	struct object *draft;
	int result = find_open_draft(pool, owner, id, &draft, err);

	if (result < 0)
		return result;
	if (offset == 0 && draft->file_count >= FILES_PER_DRAFT_LIMIT)
		return dp_fail(err, EMFILE, "more than %d files in the draft of %s", FILES_PER_DRAFT_LIMIT, draft->name);
	struct pool_file *file = offset == 0 ? start_file(pool, draft, name) : (struct pool_file *)pool_file_find(draft, name);

	if (!file)
		return offset == 0 ? dp_fail(err, ENOMEM, "the pool is out of memory") :
				     dp_fail(err, EINVAL, "file %s does not begin at its beginning", name);
	if (offset == 0)
		file->total = total;
	if (offset != file->filled || total != file->total || bytes > total - offset)
		return dp_fail(err, EINVAL, "the parts of file %s do not fit together", name);
	if (bytes > FILE_BYTES_PER_DRAFT_LIMIT || draft->file_bytes > FILE_BYTES_PER_DRAFT_LIMIT - bytes)
		return dp_fail(err, EFBIG, "the files of the draft of %s are too large", draft->name);
	result = accounts_check(&pool->slots.accounts, bytes);
	if (result < 0) {
		draft->failed = -result;
		return dp_fail_errno(err, -result, "store file %s of snapshot %s", name, draft->name);
	}
	/* Grows with what has come, not with what was announced. */
	uint8_t *grown = realloc(file->content, file->filled + bytes + 1);

	if (!grown) {
		draft->failed = ENOMEM;
		return dp_fail(err, ENOMEM, "the pool is out of memory");
	}
	file->content = grown;
	if (bytes)
		memcpy(grown + file->filled, content, bytes);
	file->filled += bytes;
	draft->file_bytes += bytes;
	accounts_charge(&pool->slots.accounts, draft->account, bytes);
	return 0;
}

static int check_complete(const struct object *draft, struct dp_err *err)
{
	if (draft->failed)
		return dp_fail_errno(err, draft->failed, "a page of snapshot %s could not be stored", draft->name);
	for (size_t i = 0; i < draft->file_count; i++)
		if (draft->files[i].filled != draft->files[i].total)
			return dp_fail(err, EINVAL, "file %s of snapshot %s is incomplete", draft->files[i].name, draft->name);
	return 0;
}

int pool_snapshot_commit_begin(struct pool *pool, const void *owner, uint64_t id, const char *meta, uint32_t meta_length,
			       struct dp_err *err)
{
	struct object *draft;
	int result = find_draft(pool, owner, id, &draft, err);

	if (result == 0)
		result = check_complete(draft, err);
	if (result < 0)
		return result;
	if (!draft->replace && pool_snapshot(pool, draft->name))
		return name_taken(draft->name, err);
	char *copy = malloc(meta_length + 1u);

	if (!copy)
		return dp_fail(err, ENOMEM, "the pool is out of memory");
	if (meta_length)
		memcpy(copy, meta, meta_length);
	copy[meta_length] = 0;
	free(draft->meta);
	draft->meta = copy;
	draft->meta_length = meta_length;
	draft->committing = true;
	return 0;
}

int pool_snapshot_commit_finish(struct pool *pool, const void *owner, uint64_t id, int sync_result, struct dp_err *err)
{
	struct object *draft, *old;
	int result = find_draft(pool, owner, id, &draft, err);

	if (result < 0)
		return result;
	if (sync_result < 0)
		return dp_fail_errno(err, -sync_result, "store the pages of snapshot %s", draft->name);
	/* Again: somebody may have been quicker while the disk was waited for. */
	old = pool_snapshot(pool, draft->name);
	if (old && !draft->replace)
		return name_taken(draft->name, err);
	result = old ? release_base(pool, old) : 0;
	if (result < 0)
		return dp_fail_errno(err, -result, "keep the pages of the instances of %s", old->name);
	result = owner_save(pool, draft);
	if (result < 0)
		return dp_fail_errno(err, -result, "store who owns snapshot %s", draft->name);
	result = persist_save(pool, draft, err);
	if (result < 0)
		return result;
	if (old) {
		order_remove(pool, old->name);
		object_free(pool, old);
	}
	pool_publish(pool, draft);
	return 0;
}

int pool_snapshot_abort(struct pool *pool, const void *owner, uint64_t id, struct dp_err *err)
{
	struct object *draft;
	int result = find_draft(pool, owner, id, &draft, err);

	if (result == 0)
		object_free(pool, draft);
	return result;
}

int pool_snapshot_remove(struct pool *pool, const char *name, bool force, struct dp_err *err)
{
	struct object *snapshot = pool_snapshot(pool, name);

	if (!snapshot)
		return dp_fail(err, ENOENT, "there is no snapshot %s", name);
	if (snapshot->instances && !force)
		return dp_fail(err, EBUSY,
			       "snapshot %s has %u live instance%s; stop them, or use --force (they keep their pages)", name,
			       snapshot->instances, snapshot->instances == 1 ? "" : "s");
	int result = release_base(pool, snapshot);

	if (result < 0)
		return dp_fail_errno(err, -result, "keep the pages of the instances of %s", snapshot->name);
	result = persist_remove(pool, name, err);
	if (result < 0)
		return result;
	object_free(pool, snapshot);
	return 0;
}

int pool_instance_create(struct pool *pool, const void *owner, const char *snapshot_name, const char *name, uint32_t flags,
			 struct object **result, struct dp_err *err)
{
	struct object *snapshot = pool_snapshot(pool, snapshot_name);

	if (!snapshot)
		return dp_fail(err, ENOENT, "there is no snapshot %s", snapshot_name);
	if (pool->instance_count >= INSTANCES_LIMIT)
		return dp_fail(err, EMFILE, "the pool has %d instances, and takes no more", INSTANCES_LIMIT);
	struct object *instance = object_new(pool, OBJECT_INSTANCE, name, owner);

	if (!instance)
		return dp_fail(err, ENOMEM, "the pool is out of memory");
	instance->epoch = 1;
	instance->keep = flags & INSTANCE_FLAG_KEEP;
	instance->resume = flags & INSTANCE_FLAG_RESUME;
	instance->base = snapshot->id;
	snapshot->instances++;
	for (const struct space *base = snapshot->spaces; base; base = base->next) {
		struct space *space = object_add_space(pool, instance, 0, base->label);

		if (!space) {
			object_free(pool, instance);
			return dp_fail(err, ENOMEM, "the pool is out of memory");
		}
		pagemap_clone(&space->map, &base->map);
	}
	if (instance->resume)
		journal_begin(pool, instance);
	*result = instance;
	return 0;
}

static int find_instance(struct pool *pool, uint64_t id, struct object **instance, struct dp_err *err)
{
	*instance = pool_object(pool, id, OBJECT_INSTANCE);
	return *instance ? 0 : dp_fail(err, ENOENT, "there is no such instance");
}

int pool_instance_end(struct pool *pool, uint64_t id, uint64_t epoch, struct dp_err *err)
{
	struct object *instance;
	int result = find_instance(pool, id, &instance, err);

	if (result < 0)
		return result;
	if (instance->epoch != epoch)
		return dp_fail(err, ESTALE, "the lease of instance %s was taken by another", instance->name);
	if (pool->on_instance_end)
		pool->on_instance_end(pool->on_instance_end_context, instance);
	object_free(pool, instance);
	return 0;
}

int pool_lease_take(struct pool *pool, const void *owner, uint64_t id, uint32_t step, uint64_t *epoch, struct dp_err *err)
{
	struct object *instance;
	int result = find_instance(pool, id, &instance, err);

	if (result < 0)
		return result;
	instance->owner = owner;
	instance->lost_ns = 0;
	*epoch = instance->epoch += step;
	journal_lease(pool, instance); /* on the journal before it is told: a restart must not bring an older epoch back */
	return 0;
}
