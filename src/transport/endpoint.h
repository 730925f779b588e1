/* Names of pools as people write them, taken apart; no I/O here.
 *
 *   dp://HOST:PORT/REPO:TAG          a pool over TCP (default port 7400)
 *   dps://HOST:PORT/REPO:TAG         the same with TLS 1.3 (tls.h); also where `pool serve` listens
 *   dp+unix:///PATH#REPO:TAG         a pool on a Unix socket
 *   dir:/PATH#REPO:TAG               a directory store of this host; a captive pool serves it while it is needed
 *   file:/PATH#REPO:TAG              the same with a single-file store
 *   dir:/PATH?compress=zstd#...      a store that packs its pages, if it is a new one (file: as well; or lz4)
 *   tcp://HOST:PORT, unix:///PATH    where `pool serve` listens
 * The name part may be left out where only the pool is meant. TAG defaults to `latest`. A name is
 * [a-z0-9][a-z0-9._/-]{0,127} for REPO and [A-Za-z0-9_][A-Za-z0-9._-]{0,63} for TAG; anything else is refused, `..` too. */
#ifndef DP_TRANSPORT_ENDPOINT_H
#define DP_TRANSPORT_ENDPOINT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

enum endpoint_kind { ENDPOINT_TCP, ENDPOINT_UNIX, ENDPOINT_DIR, ENDPOINT_FILE };

struct endpoint {
	enum endpoint_kind kind;
	char host[256];  /* TCP: name or address, IPv6 without brackets */
	uint16_t port;   /* TCP */
	bool tls;        /* TCP: dps:// */
	char path[1024]; /* Unix, dir, file: absolute path */
	char compress[8]; /* dir, file: "zstd" or "lz4" where a new store is to be packed so; no part of the pool's name */
	char name[256];  /* "repo:tag", or "" where the URI names a pool only */
};

/* Parses any of the forms above. -EINVAL with a text that says what is wrong and shows a right example. */
int endpoint_parse(struct endpoint *endpoint, const char *uri, struct dp_err *err);
/* Checks and normalises a name ("redis" -> "redis:latest"). -EINVAL. */
int endpoint_name_check(const char *name, char normal[static 256], struct dp_err *err);
/* The pool part as text, without the name; for messages and state files. */
const char *endpoint_pool_text(const struct endpoint *endpoint, char *buffer, unsigned size);

#endif
