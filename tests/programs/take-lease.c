/* Takes the lease of an instance from whoever has it, as another host would: take-lease POOL INSTANCE. */
#include <stdio.h>
#include <stdlib.h>

#include "client/client.h"

int main(int argc, char **argv)
{
	struct endpoint endpoint;
	struct client *client;
	struct dp_err err = { "" };
	uint64_t epoch;

	if (argc != 3)
		return 2;
	if (endpoint_parse(&endpoint, argv[1], &err) < 0 || client_open(&client, &endpoint, 0, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	int result = client_lease_take(client, strtoull(argv[2], NULL, 10), &epoch, &err);

	if (result < 0)
		fprintf(stderr, "%s\n", err.text);
	else
		printf("%llu\n", (unsigned long long)epoch);
	client_close(client);
	return result < 0;
}
