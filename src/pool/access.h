/* pool/access: who may do what with which repositories, and how much of it.
 *
 * A file of rights has one rule a line: IDENTITY RIGHTS [GLOB...] [quota=SIZE]
 *   IDENTITY  cn:NAME (certificate), psk:NAME, uid:N (Unix socket), anonymous; a pattern (*, ?) is allowed
 *   RIGHTS    read, write, admin, clone joined by commas, or none
 *   GLOB      of repositories (the name before the ':'), where * matches / too; none given: all
 *   quota=    how many bytes pages and files that this identity stored may take; the first rule that names one counts
 * Rules add up: a right is had if any rule whose identity and glob match gives it. Whoever no rule matches has none. Root and the
 * user who runs the pool, over a Unix socket, have every right: they could read the pool's memory and its store.
 * Without a file: every right for those whose certificate or key was accepted, for that user and root, and for plain TCP.
 *
 *   read    list and open snapshots, fetch their pages, run instances of them (an instance belongs to the identity that made it)
 *   write   make and replace snapshots, give them recorded orders; the instances of others
 *   admin   remove snapshots, and all that has no right of its own
 *   clone   of an agent only: copy the memory of running processes; nobody has it who is not given it
 * Thread rule: none; a table does not change. */
#ifndef DP_POOL_ACCESS_H
#define DP_POOL_ACCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define RIGHT_READ 1u
#define RIGHT_WRITE 2u
#define RIGHT_ADMIN 4u
#define RIGHT_CLONE 8u
#define RIGHTS_ALL (RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN) /* of a pool */
#define RIGHTS_KNOWN (RIGHTS_ALL | RIGHT_CLONE)
#define NO_QUOTA UINT64_MAX

struct access;

/* Pure. -EINVAL with the line's number. */
int access_parse(struct access **access, const char *text, struct dp_err *err);
/* A file that only its owner (us or root) may write. -EACCES, -ENOENT, -EINVAL, ... */
int access_read(struct access **access, const char *path, struct dp_err *err);
/* Takes NULL. */
void access_free(struct access *access);

/* The rights of an identity to a repository ("redis", or a snapshot's name: what follows ':' does not count). access NULL: no
 * file. */
unsigned access_rights(const struct access *access, const char *identity, const char *repository);
/* Has it any right to anything? */
bool access_knows(const struct access *access, const char *identity);
/* NO_QUOTA where no rule names one. */
uint64_t access_quota_bytes(const struct access *access, const char *identity);
/* Does a rule name users other than `uid` and root: must they be able to connect to a Unix socket? */
bool access_names_users(const struct access *access, unsigned uid);
/* "read", "write", "admin" or "clone". */
const char *access_right_name(unsigned right);

#endif
