/* tree_copy: a directory tree becomes the same on another host: most of it while it is used, and what changed since, once nobody
 * writes to it any more.
 *
 * How it works: the sender walks its tree and says of each directory what is in it; the receiver makes, removes and corrects, and
 * answers which files' contents it lacks (another length, or another time of the last change, to the nanosecond), which are sent
 * then. In the second pass only directories are told of in which something changed (by the time of the last change of each inode,
 * as it was in the first pass), and the contents come unasked. A file that a process has mapped shared and writable counts
 * as changed, for the kernel notes its changes late; so does one that had changed just before it was looked at.
 * A file's content appears under its name whole or not at all.
 *
 *   {"op":"dir","dir":"a/b","entries":[{"name","type","mode","uid","gid","size","mtime_ns",...}],"more":bool,"push":bool}
 *   {"event":"need","names":[...]}                          after the last part of a directory, unless it is pushed
 *   {"op":"file","dir":"a/b","entry":{...}} and the bytes
 *   {"op":"same"} and {"event":"same"}                      the end of a pass
 *
 * Not kept: hard links (each becomes a file of its own), holes in files, times of directories. Sockets are left out.
 * Invariants: TC1 nothing outside of the receiver's directory is touched, whatever is said (openat2: no links, no other
 * file system). TC2 after a second pass, with nobody writing at either end, both are the same, but for the above.
 * Thread rule: one thread per object. Calls block. */
#ifndef DP_MIGRATE_TREE_COPY_H
#define DP_MIGRATE_TREE_COPY_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "migrate/lines.h"

#define TREE_COPY_LIMIT_BYTES (UINT64_C(1) << 30) /* what may travel, where nobody says */

/* ---- where it is ---- */
struct tree_sender;
/* root: absolute. limit_bytes: of contents, in both passes. -ENOENT, -ENOTDIR, -ENOMEM. */
int tree_sender_open(struct tree_sender **sender, const char *root, uint64_t limit_bytes, struct dp_err *err);
/* One pass. pid: a first process that stands still with all below it, in the second pass; 0 in the first.
 * -EFBIG: more than the limit; -EIO and others: the text says whose. */
int tree_send(struct tree_sender *sender, struct lines *peer, pid_t pid, struct dp_err *err);
uint64_t tree_sender_bytes(const struct tree_sender *sender); /* of contents that were sent */
/* Takes NULL. */
void tree_sender_free(struct tree_sender *sender);

/* ---- where it is to be ---- */
struct tree_receiver {
	int root_fd; /* -1: none */
	json_object *seen, *needed; /* of the directory that is told of in parts */
};
int tree_receiver_open(struct tree_receiver *receiver, const char *root, struct dp_err *err);
/* Is this line one of a copy's? */
bool tree_receive_is(json_object *line);
/* Does what it says, and answers. */
int tree_receive(struct tree_receiver *receiver, json_object *line, struct lines *peer, struct dp_err *err);
void tree_receiver_close(struct tree_receiver *receiver);

#endif
