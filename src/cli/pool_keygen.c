/* pool keygen: a line for a file of pre-shared keys. */
#include "cli/pool.h"

#include <errno.h>
#include <getopt.h>
#include <string.h>
#include <sys/random.h>

#include "base/base.h"
#include "cli/cli.h"
#include "transport/psk.h"

#define KEY_BYTES 32

static const char usage[] =
	"Usage: distri-proc pool keygen IDENTITY\n"
	"\n"
	"Prints a fresh pre-shared key as a line IDENTITY:HEXKEY for --psk-file; IDENTITY is who it is for, 1 to 64 of\n"
	"[A-Za-z0-9._@-]. The pool's file holds one line a client, each client's its own; both must be mode 0600:\n"
	"\n"
	"  (umask 077; distri-proc pool keygen edge-1 >edge-1.psk)\n";

int cmd_pool_keygen(int argc, char **argv)
{
	static const struct option options[] = { { "help", no_argument, NULL, 'h' }, { 0 } };
	uint8_t key[KEY_BYTES];

	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		if (option != 'h')
			return cli_usage_hint(argv[0]);
		fputs(usage, stdout);
		return EXIT_OK;
	}
	if (optind + 1 != argc)
		return cli_usage_error(argv[0], "expected one identity, like edge-1");
	if (psk_identity_check(argv[optind], strlen(argv[optind])) < 0)
		return cli_usage_error(argv[0], "an identity is 1 to %d of [A-Za-z0-9._@-]", PSK_IDENTITY_LIMIT);
	if (getrandom(key, sizeof(key), 0) != KEY_BYTES) {
		struct dp_err err;

		return cli_print_error(dp_fail_errno(&err, errno, "pool keygen: random numbers"), &err, false);
	}
	printf("%s:", argv[optind]);
	for (size_t i = 0; i < KEY_BYTES; i++)
		printf("%02x", key[i]);
	putchar('\n');
	explicit_bzero(key, sizeof(key));
	return EXIT_OK;
}
