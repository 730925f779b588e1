#include "pool/account.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct account *account_new(const char *identity)
{
	struct account *account = calloc(1, sizeof(*account));

	if (!account)
		return NULL;
	snprintf(account->identity, sizeof(account->identity), "%s", identity);
	account->quota_bytes = UINT64_MAX;
	return account;
}

int accounts_init(struct accounts *accounts)
{
	accounts->count = 0;
	accounts->payer = 0;
	accounts->list[0] = account_new("");
	if (!accounts->list[0])
		return -ENOMEM;
	accounts->count = 1;
	return 0;
}

void accounts_done(struct accounts *accounts)
{
	while (accounts->count)
		free(accounts->list[--accounts->count]);
}

uint16_t accounts_open(struct accounts *accounts, const char *identity)
{
	for (uint16_t i = 1; i < accounts->count; i++)
		if (strcmp(accounts->list[i]->identity, identity) == 0)
			return i;
	if (accounts->count == ACCOUNTS_LIMIT)
		return ACCOUNTS_LIMIT - 1;
	struct account *account = account_new(accounts->count == ACCOUNTS_LIMIT - 1 ? "others" : identity);

	if (!account)
		return 0;
	accounts->list[accounts->count] = account;
	return accounts->count++;
}
