#include "client/link_connect.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/base.h"
#include "wire/message.h"

struct link_connector {
	atomic_int owners; /* we, and the thread: the last one frees */
	atomic_bool over;
	int event_fd;
	struct link_config config;
	struct endpoint endpoint;
	uint64_t instance, epoch;
	uint8_t identity[IDENTITY_BYTES];
	/* the result */
	bool taken, asked;
	int result;
	struct client *client;
	struct client_attached attached;
	struct dp_err err;
};

int link_idle_fd(void)
{
	return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void release(struct link_connector *connector)
{
	if (atomic_fetch_sub(&connector->owners, 1) > 1)
		return;
	if (!connector->taken && connector->result == 0) {
		client_close(connector->client);
		client_attached_done(&connector->attached);
	}
	dp_close_fd(&connector->event_fd);
	free(connector);
}

static int connect_and_attach(struct link_connector *connector)
{
	const struct link_config *config = &connector->config;
	struct dp_err *err = &connector->err;
	int result = config->connect ? config->connect(config->connect_context, &connector->client, LINK_CONNECT_MS, err)
				     : client_open(&connector->client, &connector->endpoint, LINK_CONNECT_MS, err);

	if (result < 0)
		return result;
	result = client_set_compress(connector->client, config->compress);
	if (result < 0)
		dp_fail_errno(err, -result, "room to unpack pages");
	if (result == 0) {
		result = client_attach(connector->client, connector->instance, connector->epoch, 0, connector->identity,
				       LINK_CONNECT_MS, &connector->attached, err);
		connector->asked = true;
	}
	if (result == 0 && config->near)
		client_read_near(connector->client);
	if (result < 0)
		client_close(connector->client);
	return result;
}

static void *run(void *context)
{
	struct link_connector *connector = context;
	const uint64_t one = 1;

	connector->result = connect_and_attach(connector);
	atomic_store(&connector->over, true);
	ssize_t ignored = write(connector->event_fd, &one, sizeof(one));

	(void)ignored; /* it cannot be full */
	release(connector);
	return NULL;
}

/* No signal is the thread's business. */
static int start_thread(struct link_connector *connector)
{
	pthread_attr_t attributes;
	pthread_t thread;
	sigset_t all, before;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	pthread_attr_init(&attributes);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	int code = pthread_create(&thread, &attributes, run, connector);

	pthread_attr_destroy(&attributes);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return code;
}

int link_connector_start(struct link_connector **result, const struct link_config *config, const struct endpoint *endpoint,
			 uint64_t instance, uint64_t epoch, const uint8_t *identity, struct dp_err *err)
{
	struct link_connector *connector = calloc(1, sizeof(*connector));

	if (!connector)
		return dp_fail(err, ENOMEM, "out of memory");
	connector->config = *config;
	connector->endpoint = *endpoint;
	connector->instance = instance;
	connector->epoch = epoch;
	memcpy(connector->identity, identity, IDENTITY_BYTES);
	connector->event_fd = link_idle_fd();
	atomic_init(&connector->owners, 2);
	int code = connector->event_fd < 0 ? errno : 0;

	if (code == 0 && config->connect)
		run(connector);
	else if (code == 0)
		code = start_thread(connector);
	if (code) {
		connector->result = -code;
		atomic_store(&connector->owners, 1);
		release(connector);
		return dp_fail_errno(err, code, "a thread to connect to the pool");
	}
	*result = connector;
	return 0;
}

int link_connector_fd(const struct link_connector *connector)
{
	return connector->event_fd;
}

bool link_connector_take(struct link_connector *connector, int *result, struct client **client, struct client_attached *attached,
			 struct dp_err *err)
{
	if (!atomic_load(&connector->over))
		return false;
	*result = connector->result;
	*client = connector->client;
	*attached = connector->attached;
	*err = connector->err;
	connector->taken = true;
	return true;
}

bool link_connector_asked(const struct link_connector *connector)
{
	return connector && connector->asked;
}

void link_connector_free(struct link_connector *connector)
{
	if (connector)
		release(connector);
}
