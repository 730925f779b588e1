/* pool scrub: compares every page of a pool with its digest, and repairs what is damaged. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "cli/cli.h"
#include "cli/pool.h"
#include "client/client.h"
#include "client/scrub.h"

#define STEP_PAGES 512u /* what the pool looks at between serving others: well below a millisecond, in memory */

static const char usage[] =
	"Usage: distri-proc pool scrub [OPTIONS] POOL\n"
	"\n"
	"Reads every page that a pool stores, while it serves others, and compares it with the digest it was written with. Exits with 0\n"
	"where all is right in the end, with 10 where something is damaged.\n"
	"\n"
	"  --repair-from POOL2  what is damaged is looked for in POOL (stored twice) and POOL2 (by its digest, whatever the snapshot is called\n"
	"                       there) and written again in its place; may be given several times\n"
	"  --add-digests        pages of stores of an earlier version, which have no digest, get that of what they hold now\n"
	"  --rate SIZE          reads at most so much a second, like 100M (default: as fast as it goes)\n"
	"  --json               one object at the end\n"
	"  --quiet              no progress on standard error\n";

#define POOLS_LIMIT 8

struct scrub {
	struct endpoint endpoint, from[POOLS_LIMIT];
	unsigned from_count;
	uint64_t rate_bytes;
	bool add, json, quiet;
	struct client *client, *sources[1 + POOLS_LIMIT]; /* where whole pages are looked for; the first is the pool itself */
	/* found */
	uint64_t checked, unverified, added, damaged, repaired;
	uint64_t started_ns, told_ns;
	json_object *list;
};

static int parse(struct scrub *scrub, int argc, char **argv)
{
	static const struct option options[] = {
		{ "repair-from", required_argument, NULL, 'r' }, { "add-digests", no_argument, NULL, 'a' },
		{ "rate", required_argument, NULL, 'b' },        { "json", no_argument, NULL, 'j' },
		{ "quiet", no_argument, NULL, 'q' },             { "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct dp_err err;

	for (int option; (option = getopt_long(argc, argv, "h", options, NULL)) != -1;) {
		if (option == 'r' && scrub->from_count < POOLS_LIMIT) {
			if (endpoint_parse(&scrub->from[scrub->from_count++], optarg, &err) < 0)
				return cli_usage_error(argv[0], "--repair-from: %s", err.text);
		} else if (option == 'a') {
			scrub->add = true;
		} else if (option == 'b') {
			if (parse_size(optarg, &scrub->rate_bytes) < 0 || scrub->rate_bytes < PAGE_BYTES)
				return cli_usage_error(argv[0], "--rate %s: write a size a second, like 100M", optarg);
		} else if (option == 'j') {
			scrub->json = true;
		} else if (option == 'q') {
			scrub->quiet = true;
		} else if (option == 'h') {
			fputs(usage, stdout);
			return -1;
		} else {
			return cli_usage_hint(argv[0]);
		}
	}
	if (optind + 1 != argc)
		return cli_usage_error(argv[0], "expected one pool, like dir:/var/lib/pool");
	if (endpoint_parse(&scrub->endpoint, argv[optind], &err) < 0)
		return cli_usage_error(argv[0], "%s", err.text);
	return 0;
}

static void tell(struct scrub *scrub, const struct damaged_page *page, const char *state)
{
	char digest[40], address[32];

	snprintf(digest, sizeof(digest), "%016" PRIx64 "%016" PRIx64, page->digest.high, page->digest.low);
	snprintf(address, sizeof(address), "%#" PRIx64, page->pgno << PAGE_SHIFT);
	if (!scrub->json) {
		printf("%s: page at %s of task %" PRIu64 " of %s (slot %" PRIu64 ", digest %s)\n", state, address, page->label,
		       page->name[0] ? page->name : "nothing that has a name", page->slot, digest);
		return;
	}
	json_object *object = json_object_new_object();

	json_object_object_add(object, "state", json_object_new_string(state));
	json_object_object_add(object, "name", json_object_new_string(page->name));
	json_object_object_add(object, "task", json_object_new_uint64(page->label));
	json_object_object_add(object, "address", json_object_new_string(address));
	json_object_object_add(object, "slot", json_object_new_uint64(page->slot));
	json_object_object_add(object, "digest", json_object_new_string(digest));
	json_object_array_add(scrub->list, object);
}

/* Looks for the pages wherever they may be, and writes them where they are damaged. */
static int repair(struct scrub *scrub, const struct message_scrubbed *scrubbed, struct dp_err *err)
{
	struct page_digest digests[SCRUB_DAMAGED_LIMIT];
	static uint8_t pages[SCRUB_DAMAGED_LIMIT * PAGE_BYTES];
	uint64_t repaired = 0, found;

	for (uint32_t i = 0; i < scrubbed->count; i++)
		digests[i] = scrubbed->damaged[i].digest;
	for (unsigned source = 0; source <= scrub->from_count && scrub->from_count; source++) {
		int result = client_find_pages(scrub->sources[source], digests, scrubbed->count, &found, pages, err);

		for (uint32_t i = 0; i < scrubbed->count && result == 0; i++) {
			if (!(found >> i & 1) || repaired >> i & 1)
				continue;
			struct dp_err why = { "" };

			if (client_repair(scrub->client, scrubbed->damaged[i].slot, digests[i], pages + (size_t)i * PAGE_BYTES,
					  &why) == 0)
				repaired |= UINT64_C(1) << i;
			else
				fprintf(stderr, "slot %" PRIu64 " could not be repaired: %s\n", scrubbed->damaged[i].slot,
					why.text);
		}
		if (result < 0)
			return result;
	}
	for (uint32_t i = 0; i < scrubbed->count; i++)
		tell(scrub, &scrubbed->damaged[i], repaired >> i & 1 ? "repaired" : "damaged");
	scrub->repaired += (uint64_t)__builtin_popcountll(repaired);
	return 0;
}

static void progress(struct scrub *scrub, uint64_t at, uint64_t end, bool last)
{
	uint64_t now = clock_now_ns();
	char size[32];

	if (scrub->quiet || (!last && now - scrub->told_ns < 1000000000))
		return;
	scrub->told_ns = now;
	fprintf(stderr, "%3.0f %%  %s read, %" PRIu64 " pages damaged, %" PRIu64 " repaired\n",
		end ? 100.0 * (double)at / (double)end : 100.0, format_size(scrub->checked * PAGE_BYTES, size, sizeof(size)),
		scrub->damaged, scrub->repaired);
}

static void keep_rate(const struct scrub *scrub)
{
	uint64_t due_ns = scrub->rate_bytes ? (uint64_t)((double)scrub->checked * PAGE_BYTES / (double)scrub->rate_bytes * 1e9)
					    : 0;
	uint64_t spent_ns = clock_now_ns() - scrub->started_ns;

	if (due_ns > spent_ns)
		nanosleep(&(struct timespec){ (time_t)((due_ns - spent_ns) / 1000000000),
					      (long)((due_ns - spent_ns) % 1000000000) },
			  NULL);
}

static int scan(struct scrub *scrub, struct dp_err *err)
{
	struct message_scrub ask = { .pages = STEP_PAGES, .flags = scrub->add ? SCRUB_FLAG_ADD : 0 };
	struct message_scrubbed *scrubbed = malloc(sizeof(*scrubbed));
	int result = scrubbed ? 0 : dp_fail_errno(err, ENOMEM, "scrub");

	if (scrub->rate_bytes)
		ask.pages = (uint32_t)DP_MAX(DP_MIN((uint64_t)STEP_PAGES, scrub->rate_bytes / PAGE_BYTES / 10), UINT64_C(1));
	scrub->started_ns = scrub->told_ns = clock_now_ns();
	while (result == 0) {
		result = client_scrub(scrub->client, &ask, scrubbed, err);
		if (result < 0)
			break;
		scrub->checked += scrubbed->checked;
		scrub->unverified += scrubbed->unverified;
		scrub->added += scrubbed->added;
		scrub->damaged += scrubbed->count;
		if (scrubbed->count)
			result = repair(scrub, scrubbed, err);
		progress(scrub, scrubbed->next ? scrubbed->next : scrubbed->end, scrubbed->end, !scrubbed->next);
		if (!scrubbed->next)
			break;
		ask.from = scrubbed->next;
		keep_rate(scrub);
	}
	free(scrubbed);
	return result;
}

static void report(const struct scrub *scrub)
{
	json_object *object;

	if (!scrub->json) {
		printf("%" PRIu64 " pages read, %" PRIu64 " damaged, %" PRIu64 " repaired, %" PRIu64 " without a digest%s\n",
		       scrub->checked, scrub->damaged, scrub->repaired, scrub->unverified,
		       scrub->unverified ? " (--add-digests gives them one)" : "");
		if (scrub->added)
			printf("%" PRIu64 " pages got a digest\n", scrub->added);
		return;
	}
	object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.pool.scrub/1"));
	json_object_object_add(object, "pages_read", json_object_new_uint64(scrub->checked));
	json_object_object_add(object, "pages_damaged", json_object_new_uint64(scrub->damaged));
	json_object_object_add(object, "pages_repaired", json_object_new_uint64(scrub->repaired));
	json_object_object_add(object, "pages_without_digest", json_object_new_uint64(scrub->unverified));
	json_object_object_add(object, "digests_added", json_object_new_uint64(scrub->added));
	json_object_object_add(object, "damaged", scrub->list);
	cli_print_json(object);
}

int cmd_pool_scrub(int argc, char **argv)
{
	struct scrub scrub = { 0 };
	struct dp_err err = { "" };
	int code = parse(&scrub, argc, argv);

	if (code)
		return code < 0 ? EXIT_OK : code;
	int result = client_open(&scrub.client, &scrub.endpoint, 0, &err);

	scrub.sources[0] = scrub.client;
	for (unsigned i = 0; i < scrub.from_count && result == 0; i++)
		result = client_open(&scrub.sources[i + 1], &scrub.from[i], 0, &err);
	if (result == 0) {
		scrub.list = scrub.json ? json_object_new_array() : NULL;
		result = scan(&scrub, &err);
	}
	if (result == 0)
		report(&scrub);
	for (unsigned i = 0; i <= POOLS_LIMIT; i++)
		client_close(scrub.sources[i]);
	if (result < 0) {
		dp_err_doing(&err, "pool scrub");
		return cli_print_error(result, &err, scrub.json);
	}
	return scrub.damaged > scrub.repaired ? EXIT_INTEGRITY : EXIT_OK;
}
