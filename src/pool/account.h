/* pool/account: what each identity has stored, and how much of it and of the whole pool may be.
 *
 * A page is charged to the identity that stored it first, until nothing refers to it any more: not an instance, not a snapshot of
 * somebody else who inherited it, not an answer on its way. Files of skeletons are charged to whoever sends them. Bytes are
 * counted before a store packs them. Who stored a snapshot is kept beside it in a persistent store.
 * Invariant A1: the sum of all accounts is what the pool's own account says, but for what nobody is charged with.
 * Thread rule: the server's thread. */
#ifndef DP_POOL_ACCOUNT_H
#define DP_POOL_ACCOUNT_H

#include <errno.h>
#include <stdint.h>

#define ACCOUNTS_LIMIT 4096 /* identities that store something; more share the last account */

struct account {
	char identity[160];
	uint64_t bytes;       /* pages and files */
	uint64_t quota_bytes; /* UINT64_MAX: none */
};

struct accounts {
	struct account *list[ACCOUNTS_LIMIT]; /* [0]: the whole pool */
	uint16_t count;
	uint16_t payer; /* who is charged now; 0: nobody besides the pool */
};

/* Room for the pool's own account. -ENOMEM. */
int accounts_init(struct accounts *accounts);
void accounts_done(struct accounts *accounts);
/* The number of an identity's account, made where there is none; 0 where memory is out. */
uint16_t accounts_open(struct accounts *accounts, const char *identity);

/* May the payer store so many bytes more? -EDQUOT. */
static inline int accounts_check(const struct accounts *accounts, uint64_t bytes)
{
	const struct account *pool = accounts->list[0], *payer = accounts->list[accounts->payer];

	if (bytes > pool->quota_bytes || pool->bytes > pool->quota_bytes - bytes || bytes > payer->quota_bytes ||
	    payer->bytes > payer->quota_bytes - bytes)
		return -EDQUOT;
	return 0;
}

static inline void accounts_charge(struct accounts *accounts, uint16_t payer, uint64_t bytes)
{
	accounts->list[0]->bytes += bytes;
	if (payer)
		accounts->list[payer]->bytes += bytes;
}

static inline void accounts_refund(struct accounts *accounts, uint16_t payer, uint64_t bytes)
{
	accounts->list[0]->bytes -= bytes;
	if (payer)
		accounts->list[payer]->bytes -= bytes;
}

#endif
