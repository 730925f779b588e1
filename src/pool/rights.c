/* Each request is checked here: who sent it, and may he. What is refused is logged with the peer and its identity. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "base/log.h"
#include "pool/request.h"

#define REFUSALS_A_SECOND 20 /* lines in the log; a peer that insists must not fill the disk */

enum target {
	TARGET_NONE = 0,  /* anybody who may speak at all */
	TARGET_NAME,      /* checked where the name is taken out of the payload (request_right_name) */
	TARGET_SPACE,     /* the header's object is a space */
	TARGET_OBJECT,    /* ... a draft, snapshot or instance */
};

/* What a message needs. Those that are not here need `admin` for the whole pool: a new one is closed until somebody opens it. */
static const struct need {
	uint8_t listed, target, right;
} needs[] = {
	[MESSAGE_HELLO] = { 1, TARGET_NONE, 0 },
	[MESSAGE_STATUS] = { 1, TARGET_NONE, 0 },
	[MESSAGE_NEAR] = { 1, TARGET_NONE, 0 }, /* only who could read the process anyway is answered */
	[MESSAGE_LIST] = { 1, TARGET_NONE, 0 }, /* shows what may be read */
	[MESSAGE_GET] = { 1, TARGET_SPACE, RIGHT_READ },
	[MESSAGE_LOCATE] = { 1, TARGET_SPACE, RIGHT_READ },
	[MESSAGE_PUT] = { 1, TARGET_SPACE, RIGHT_WRITE },
	[MESSAGE_DROP] = { 1, TARGET_SPACE, RIGHT_WRITE },
	[MESSAGE_MOVE] = { 1, TARGET_SPACE, RIGHT_WRITE },
	[MESSAGE_FORK] = { 1, TARGET_SPACE, RIGHT_WRITE },
	[MESSAGE_SPACE_FREE] = { 1, TARGET_SPACE, RIGHT_WRITE },
	[MESSAGE_SNAPSHOT_BEGIN] = { 1, TARGET_NAME, RIGHT_WRITE },
	[MESSAGE_SNAPSHOT_SPACE] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_SNAPSHOT_INHERIT] = { 1, TARGET_SPACE, RIGHT_WRITE },
	[MESSAGE_SNAPSHOT_FILE] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_SNAPSHOT_COMMIT] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_SNAPSHOT_ABORT] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_SNAPSHOT_OPEN] = { 1, TARGET_NAME, RIGHT_READ },
	[MESSAGE_FILE_GET] = { 1, TARGET_OBJECT, RIGHT_READ },
	[MESSAGE_REMOVE] = { 1, TARGET_NAME, RIGHT_ADMIN },
	[MESSAGE_ORDER_PUT] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_ORDER_GET] = { 1, TARGET_OBJECT, RIGHT_READ },
	[MESSAGE_INSTANCE_CREATE] = { 1, TARGET_NAME, RIGHT_READ },
	[MESSAGE_INSTANCE_END] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_LEASE_TAKE] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_ATTACH] = { 1, TARGET_OBJECT, RIGHT_WRITE },
	[MESSAGE_NOTE] = { 1, TARGET_OBJECT, RIGHT_WRITE },
};

/* ---- the log ---- */

bool refusal_may_be_logged(struct connection_shared *shared)
{
	uint64_t second = clock_now_ns() / 1000000000;

	if (second != shared->refusal_second) {
		if (shared->refusals > REFUSALS_A_SECOND)
			log_warn("%u more refusals were not logged", shared->refusals - REFUSALS_A_SECOND);
		shared->refusal_second = second;
		shared->refusals = 0;
	}
	return ++shared->refusals <= REFUSALS_A_SECOND;
}

static int refuse(struct request *request, const char *right, const char *what)
{
	const struct stream_peer *peer = &request->connection->peer;

	if (refusal_may_be_logged(request->connection->shared))
		log_warn("refused %s (%s): %s needs the right %s for %s", peer->place, peer->identity,
			 message_type_name(request->header->type), right, what);
	return dp_fail(&request->err, EACCES, "%s has no right to %s %s; a rule of the pool's --access file can give it",
		       peer->identity, right, what);
}

/* ---- who ---- */

static bool is_own_user(const char *identity)
{
	char own[32];

	snprintf(own, sizeof(own), "uid:%u", (unsigned)geteuid());
	return strcmp(identity, "uid:0") == 0 || strcmp(identity, own) == 0;
}

/* Behind the handshake: now the stream knows who it is. */
static int identify(struct request *request)
{
	struct connection *connection = request->connection;
	struct connection_shared *shared = connection->shared;
	struct accounts *accounts = &request->pool->slots.accounts;
	struct stream_peer *peer = &connection->peer;

	stream_peer(connection->stream, peer);
	bool user = strncmp(peer->identity, "uid:", 4) == 0;

	connection->trusted = user ? is_own_user(peer->identity) : !shared->access;
	if (!connection->trusted && !(shared->access && access_knows(shared->access, peer->identity))) {
		if (refusal_may_be_logged(shared))
			log_warn("refused %s (%s): %s", peer->place, peer->identity,
				 shared->access ? "no rule of the --access file gives it a right"
						: "only root and our own user may connect");
		return dp_fail(&request->err, EACCES,
			       "%s has no right to use this pool; a rule of the pool's --access file can give it one",
			       peer->identity);
	}
	connection->account = accounts_open(accounts, peer->identity);
	if (connection->account)
		accounts->list[connection->account]->quota_bytes = access_quota_bytes(shared->access, peer->identity);
	connection->identified = true;
	log_debug("%s is %s", peer->place, peer->identity);
	return 0;
}

/* ---- may he ---- */

static unsigned rights_of_name(const struct request *request, const char *name)
{
	const struct connection *connection = request->connection;

	return connection->trusted ? RIGHTS_ALL : access_rights(connection->shared->access, connection->peer.identity, name);
}

/* Instances and drafts belong to whoever made them; for others they are as good as the right to write the repository: an
 * instance's memory may hold what its snapshot does not. An instance whose maker is not known any more (the pool was restarted)
 * is for whoever may read. */
static bool made_by(const struct object *object, uint16_t account)
{
	return account && account < ACCOUNTS_LIMIT - 1 && object->account == account;
}

static unsigned rights_of_object(const struct request *request, const struct object *object)
{
	const struct object *base = object->kind == OBJECT_INSTANCE ? pool_object(request->pool, object->base, OBJECT_SNAPSHOT)
								    : object;
	unsigned rights = rights_of_name(request, base ? base->name : "");

	if (object->kind == OBJECT_SNAPSHOT)
		return rights;
	if (made_by(object, request->connection->account) || (rights & RIGHT_WRITE) ||
	    (object->kind == OBJECT_INSTANCE && !object->account && (rights & RIGHT_READ)))
		return rights | RIGHT_READ | RIGHT_WRITE;
	return rights & ~RIGHT_READ;
}

bool request_may_read(const struct request *request, const struct object *object)
{
	return request->connection->trusted || (rights_of_object(request, object) & RIGHT_READ);
}

int request_right_name(struct request *request, const char *name, unsigned right)
{
	return rights_of_name(request, name) & right ? 0 : refuse(request, access_right_name(right), name);
}

int request_right_object(struct request *request, uint64_t id, unsigned right)
{
	struct connection *connection = request->connection;
	const struct object *object;

	if (connection->trusted)
		return 0;
	/* The same object again and again: pages. An id never means another object, and its rights do not change but for a draft
	 * that becomes a snapshot. */
	object = idmap_find(&request->pool->objects, id);
	if (!object)
		return 0; /* the handler says that there is none */
	if (connection->seen_object != id || connection->seen_kind != object->kind) {
		connection->seen_object = id;
		connection->seen_kind = object->kind;
		connection->seen_rights = rights_of_object(request, object);
	}
	return connection->seen_rights & right ? 0 : refuse(request, access_right_name(right), object->name);
}

int request_check(struct request *request)
{
	const struct message_header *header = request->header;
	struct connection *connection = request->connection;
	int result = connection->identified ? 0 : identify(request);

	if (result < 0) {
		connection->broken = true;
		return result;
	}
	request->pool->slots.accounts.payer = connection->account;
	if (connection->trusted)
		return 0;
	const struct need *need = header->type < ARRAY_LENGTH(needs) && needs[header->type].listed ? &needs[header->type] : NULL;

	if (!need)
		return rights_of_name(request, "") & RIGHT_ADMIN ? 0 : refuse(request, "admin", "the pool");
	switch ((enum target)need->target) {
	case TARGET_NONE:
	case TARGET_NAME:
		return 0;
	case TARGET_SPACE:
		return request_right_object(request, header->object >> SPACE_NUMBER_BITS, need->right);
	case TARGET_OBJECT:
		return request_right_object(request, header->object, need->right);
	}
	return -EACCES;
}
