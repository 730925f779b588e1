/* Opening and closing a client. */
#include "client/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "client/captive.h"
#include "client/connection.h"

#define OPEN_TIMEOUT_MS 10000u

int client_open_stream(struct client **result, struct stream *stream, const char *text, unsigned timeout_ms, struct dp_err *err)
{
	struct client *client = calloc(1, sizeof(*client));

	if (!client) {
		stream_close(stream);
		return dp_fail_errno(err, ENOMEM, "open pool %s", text);
	}
	snprintf(client->text, sizeof(client->text), "%s", text);
	int code = connection_open(client, stream);

	if (code < 0)
		dp_fail_errno(err, -code, "open pool %s", text);
	else
		code = control_hello(client, timeout_ms, err);
	if (code == 0 && (code = client_set_compress(client, CLIENT_COMPRESS_AUTO)) < 0)
		dp_fail_errno(err, -code, "open pool %s", text);
	if (code < 0) {
		client_close(client);
		return code;
	}
	*result = client;
	return 0;
}

static int open_endpoint(struct client **client, const struct endpoint *endpoint, bool create, unsigned timeout_ms,
			 struct dp_err *err)
{
	uint64_t deadline_ns;
	struct stream *stream;
	char text[1400];
	int result;

	if (timeout_ms == 0)
		timeout_ms = OPEN_TIMEOUT_MS;
	deadline_ns = clock_now_ns() + timeout_ms * UINT64_C(1000000);
	endpoint_pool_text(endpoint, text, sizeof(text));
	bool captive = endpoint->kind == ENDPOINT_DIR || endpoint->kind == ENDPOINT_FILE;

	do {
		result = captive ? captive_connect(&stream, endpoint, create, deadline_ns, err) :
				   stream_connect(&stream, endpoint, timeout_ms, err);
		if (result < 0)
			return result;
		result = client_open_stream(client, stream, text, timeout_ms, err);
		/* A captive pool that is just leaving takes the connection down with it: start the next one. */
	} while (captive && (result == -ECONNRESET || result == -EPIPE) && clock_now_ns() < deadline_ns);
	return result;
}

int client_open(struct client **client, const struct endpoint *endpoint, unsigned timeout_ms, struct dp_err *err)
{
	return open_endpoint(client, endpoint, false, timeout_ms, err);
}

int client_open_for_writing(struct client **client, const struct endpoint *endpoint, unsigned timeout_ms, struct dp_err *err)
{
	return open_endpoint(client, endpoint, true, timeout_ms, err);
}

int client_set_compress(struct client *client, enum client_compress mode)
{
	bool possible = (client->features & HELLO_FEATURE_LZ4) && mode != CLIENT_COMPRESS_OFF &&
			(mode != CLIENT_COMPRESS_AUTO || stream_is_network(client->stream));

	/* Lazily backed, both: what is never packed costs nothing. */
	if (possible && !client->packed)
		client->packed = malloc(PACK_ROOM(PUT_PAGES_LIMIT));
	if (possible && !client->unpacked)
		client->unpacked = malloc((size_t)DATA_PAGES_LIMIT * PAGE_BYTES);
	if (possible && (!client->packed || !client->unpacked))
		return -ENOMEM;
	compress_init(&client->get_meter, mode, possible);
	compress_init(&client->put_meter, mode, possible);
	return 0;
}

int client_compress_parse(const char *text, enum client_compress *mode)
{
	static const char *const names[] = {
		[CLIENT_COMPRESS_AUTO] = "auto", [CLIENT_COMPRESS_OFF] = "off", [CLIENT_COMPRESS_LZ4] = "lz4"
	};

	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		if (strcmp(text, names[i]) == 0) {
			*mode = (enum client_compress)i;
			return 0;
		}
	}
	return -EINVAL;
}

void client_packs(const struct client *client, bool *get, bool *put)
{
	*get = client->get_meter.on;
	*put = client->put_meter.on;
}

void client_close(struct client *client)
{
	if (!client)
		return;
	while (client->held) {
		struct held *held = client->held;

		client->held = held->next;
		free(held);
	}
	stream_close(client->stream);
	free(client->output);
	free(client->input);
	free(client->flights);
	free(client->packed);
	free(client->unpacked);
	near_close(client->near);
	free(client->near_pages);
	free(client);
}
