/* criu_locks: what CRIU leaves in nftables when a tree has gone to another host.
 *
 * For open connections it makes a table `CRIU-<id of its run>` that drops their packets, and deletes it when the tree runs on
 * here, but not when it was taken away: a connection that comes back with its tree would meet the old lock. Its name is known
 * from the inventory image, which holds the id as text. Thread rule: none, no state. */
#ifndef DP_MIGRATE_CRIU_LOCKS_H
#define DP_MIGRATE_CRIU_LOCKS_H

#define CRIU_LOCKS_BYTES 32

/* The table's name, or "" where there is no id. */
void criu_locks_name(int images_fd, char name[static CRIU_LOCKS_BYTES]);
/* "" and one that is not there are no error. Needs CAP_NET_ADMIN. */
void criu_locks_drop(const char *name);

#endif
