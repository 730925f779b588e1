/* offerer: the process behind an offer (offer.h): freezes the tree, makes the snapshot, serves it, and holds the tree.
 *
 * It is forked by offer_make and listens on a control socket (SOCK_SEQPACKET, one struct each way): its first reply tells how it
 * went, then it answers commands. Once it serves it has no right but to what it has open. CRIU is its child; the hook for which
 * CRIU waits is connected to it. Thread rule: one thread, and one that only waits (switch_heir) once the caller is gone. */
#ifndef DP_MIGRATE_OFFERER_H
#define DP_MIGRATE_OFFERER_H

#include "migrate/offer.h"

/* In the environment of CRIU, and so of its hook: the record's path. */
#define OFFERER_RECORD "DISTRI_PROC_OFFER_RECORD"

#define OFFERER_ROUND 1
enum offerer_verb { OFFERER_PROGRESS = 1, OFFERER_RELEASE, OFFERER_RESUME, OFFERER_DETACH, OFFERER_CONFIRM };
struct offerer_command {
	uint32_t verb;
	bool keep_pages; /* OFFERER_RELEASE */
};
struct offerer_reply {
	int result; /* 0 or -errno, with the text; OFFERER_ROUND: the first is still to come */
	struct offer_round round;
	struct dp_err err;
	struct offer_facts facts;       /* the first reply */
	struct offer_progress progress; /* that to OFFERER_PROGRESS */
	char network_lock[64];          /* the first: where CRIU keeps packets out meanwhile; "" nowhere */
};

#define OFFER_ARGUMENTS 64
/* What CRIU is told besides (borrowed texts), into a list of OFFER_ARGUMENTS. -E2BIG. */
int offer_arguments(const struct offer_options *options, char **list, size_t *count, struct dp_err *err);

/* Does not return. control_fd is taken. */
void offerer_main(const struct offer_options *options, int control_fd) __attribute__((noreturn));

#endif
