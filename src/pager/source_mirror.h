/* The source that is several pools, each with all of it: an instance of the same snapshot in each, behind a link of its own
 * (client/link.h).
 *
 * How it works: each change goes to every member that is *in*, and is acknowledged when all of them have (or, with ack_one, the
 * first). A page is read from the first member that is there; where that is lost meanwhile, the rest of the answer is asked of
 * another. A member that does not answer is put *out*: that is written, as a note kept with the instance, to all that stay in,
 * and only when they have it are changes acknowledged without the one that is out. What it misses is remembered: the changes of
 * structure (drop, move, fork, free) in their order, and which blocks of pages were written. When it is back, its own link first
 * brings it what was under way; then the missed changes of structure are made, then the blocks are copied from a member that is
 * in, a few at a time, while new changes already go to it too; and when nothing is missing it is noted as in again, by all.
 *
 * Why there are no two writers and no old page: the note with the highest generation among the members says who is in. Whoever
 * takes the instance over raises the epoch at every member that this note names (M2), or does not get it. A writer's change is
 * acknowledged only by all that its own latest note names (M1), and it cannot write a note where the epoch has been raised. So of
 * two writers the older cannot have another change acknowledged, nor put out a member on which the younger relies, and no member
 * that was out is believed.
 *   M1  a change is acknowledged to the pager only after every member in (ack_one: one of them) has it, and a member leaves that
 *       duty only when all others have the note.
 *   M2  who takes over attaches, with a raised epoch, to every member that the newest note names.
 *   M3  a member is read only while it is in. M4 it is in again only after it has everything, and acknowledges from before its
 *       note.
 * A pager that takes over from a dead one of the same tree needs no raised epoch: the writer before it is dead, what he still had
 * under way is refused to a connection that is not attached any more, and who is in is in the saved state (mirror.h has M5 to
 * M8).
 * Pools of one mirror should not share what can fail together. Thread rule: the pager's fault thread. */
#ifndef DP_PAGER_SOURCE_MIRROR_H
#define DP_PAGER_SOURCE_MIRROR_H

#include "client/link.h"
#include "pager/source.h"

#define MIRROR_MEMBERS 4u

struct mirror_member {
	struct link_config config;
	/* attached; taken on success. NULL, for all: a dead pager was; `keep` and `resume` (source.h) are called next */
	struct client *client;
	struct client_attached attached;   /* borrowed. Without a client: instance, epoch, identity, and LINK_UNSETTLED */
};

/* -EINVAL where the members' instances do not have the same spaces. */
int source_mirror_new(struct source **source, const struct mirror_member *members, size_t count, bool ack_one,
		      struct dp_err *err);
/* The instance in each member, whether that is in and there, and whether it has acknowledged all that it was sent too; count, 0
 * where it is no mirror. */
size_t source_mirror_instances(const struct source *source, uint64_t *instances, uint64_t *epochs, bool *there, bool *whole);

#endif
