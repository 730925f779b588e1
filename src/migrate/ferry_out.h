/* ferry_out: what the parts of the source's ferry share. Only for this room. */
#ifndef DP_MIGRATE_FERRY_OUT_H
#define DP_MIGRATE_FERRY_OUT_H

#include <sys/types.h>

#include "migrate/address.h"
#include "migrate/ferry.h"
#include "migrate/forward.h"
#include "migrate/offer.h"
#include "migrate/switch.h"
#include "transport/stream.h"

#define OUT_ASKERS 8u

struct container_out;

struct out {
	const char *root;
	json_object *request;
	struct lines *client;      /* who asked for it; may have gone */
	bool client_gone;
	char id[FERRY_ID_BYTES], token[FERRY_ID_BYTES], record[PATH_MAX], name[64];
	pid_t pid;
	struct container_out *container; /* NULL: a tree that is none (ferry_container.h) */
	struct endpoint to;
	struct lines destination;  /* the agent there, and its ferry */
	struct listener asks;
	struct lines asker[OUT_ASKERS];
	struct address address;
	bool address_moves, address_away;
	struct forwarder forwarder; /* of packets that come for the address meanwhile */
	char landing[256];         /* the destination's pool for what goes ahead, or "" */
	char kept_pool[1400];      /* the tree is an instance with pages in a pool, and is stored in this one; or "" */
	json_object *kept_pools;   /* all of its mirror; NULL: that one alone */
	uint64_t kept_budget_bytes;
	struct offer *offer;
	struct offer_facts facts;
	struct switch_source decision;
	bool confirmed;            /* F5 of offer.h */
	bool carried_out;          /* the decision is final, and the tree killed or let go */
	int lock_fd;
	/* CLOCK_MONOTONIC, here */
	uint64_t begun_ns, prepared_ns, ready_ns, confirmed_ns, granted_ns, started_ns, whole_ns, released_ns;
	uint64_t shown_ns;
	json_object *started;      /* what the destination said when it ran, or NULL */
	int code;                  /* why it failed */
	struct dp_err err;
};

/* Everything up to the freeze: nothing stands still yet. (ferry_plan.c) */
int out_prepare(struct out *out, const struct endpoint *listen);
/* Is it an instance with pages in a pool? Then which, and how much of it may be local; what the destination has to know of pools.
 * (ferry_kept.c) */
int out_find_kept(struct out *out);
void out_add_kept(const struct out *out, json_object *line);
/* Its pages go to a pool while it runs (offer_ahead.h), */
bool out_goes_ahead(const struct out *out);
/* but for those that it writes at last; */
bool out_rest_stays(const struct out *out);
/* to this one, which both hosts reach; NULL: to the destination's landing. */
const char *out_pool(const struct out *out);
/* The files that the tree has mapped, [{path, bytes}], for the destination to compare; NULL where it brings its own. */
json_object *out_files(pid_t pid);
/* Tells the client; takes the object. */
void out_tell(struct out *out, json_object *event);
void out_phase(struct out *out, const char *phase);

#endif
