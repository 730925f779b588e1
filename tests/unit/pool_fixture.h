/* A pool, its server in a thread, and a Unix socket in a directory of its own; and a client's handler that remembers. */
#ifndef DP_TESTS_POOL_FIXTURE_H
#define DP_TESTS_POOL_FIXTURE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/client.h"
#include "pool/pool.h"
#include "pool/server.h"

struct pool_fixture {
	char directory[64];
	struct endpoint endpoint;
	struct store *store;
	struct pool *pool; /* may be looked at only while the server is stopped */
	struct server *server;
	pthread_t thread;
};

/* All of these assert that they succeed. The store's URI may hold %s for the fixture's directory. */
void fixture_start(struct pool_fixture *fixture, const char *store_uri);
/* Stops the server; the pool stays and can be looked at, until fixture_end. */
void fixture_stop(struct pool_fixture *fixture);
void fixture_end(struct pool_fixture *fixture);
struct client *fixture_connect(const struct pool_fixture *fixture);

/* What came for the requests of a client. */
struct results {
	unsigned answers;      /* on_done calls and last parts */
	unsigned parts;        /* on_pages calls */
	int result;            /* first failure told by on_done */
	uint64_t last_cookie;
	uint8_t *memory;       /* pages land here, page base at its start */
	uint64_t base, pages;
	uint64_t data_pages, zero_pages;
};
struct client_handler results_handler(struct results *results);
/* Receives until `answers` requests were answered. Returns results->result. */
int results_wait(struct client *client, struct results *results, unsigned answers);
/* As above, but tells the connection's error instead of asserting that there is none. */
int results_wait_error(struct client *client, struct results *results, unsigned answers);

/* A page full of what (space, pgno, version) say; version 0 is zeros. */
void fill_page(uint8_t *page, uint64_t pgno, uint64_t version);
/* Puts `pages` pages of a version, in requests of up to 256 pages, and waits. 0 or the first failure. */
int put_pages(struct client *client, uint64_t space, uint64_t epoch, uint64_t pgno, uint64_t pages, uint64_t version);
/* Gets them and asserts that each is of the version. */
void expect_pages(struct client *client, uint64_t space, uint64_t pgno, uint64_t pages, uint64_t version);
/* A committed snapshot of one space (label 1) with pages [0, pages) of version 1. */
void make_snapshot(struct client *client, const char *name, uint64_t pages);

#endif
