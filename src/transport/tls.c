#include "transport/tls.h"

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

static const char *setting(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

void tls_settings_from_environment(struct tls_settings *settings)
{
	const char *plain = setting("DISTRI_PROC_ALLOW_PLAINTEXT");

	*settings = (struct tls_settings){
		.cert = setting("DISTRI_PROC_TLS_CERT"),
		.key = setting("DISTRI_PROC_TLS_KEY"),
		.ca = setting("DISTRI_PROC_TLS_CA"),
		.name = setting("DISTRI_PROC_TLS_NAME"),
		.psk_file = setting("DISTRI_PROC_PSK_FILE"),
		.allow_plaintext = plain && strcmp(plain, "1") == 0,
	};
}

/* It lies where this program was built (tests and benchmarks: beside it), or where it was installed. */
static void *open_module(char *tried, size_t size)
{
	static const char *const places[] = { "src/transport", "../libexec/distri-proc", "../../src/transport" };
	char program[PATH_MAX], path[PATH_MAX + 64];
	ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
	void *handle = NULL;

	program[DP_MAX(length, 0)] = 0;
	char *slash = strrchr(program, '/');

	if (slash)
		*slash = 0;
	for (size_t i = 0; i < ARRAY_LENGTH(places) && !handle && slash; i++) {
		snprintf(path, sizeof(path), "%s/%s/distriproc-tls.so", program, places[i]);
		if (access(path, F_OK) == 0)
			handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	}
	const char *why = handle ? NULL : dlerror();

	snprintf(tried, size, "%s", why ? why : "distriproc-tls.so is not where it was installed");
	return handle;
}

int tls_load(const struct tls_module **module, struct dp_err *err)
{
	static const struct tls_module *loaded;
	char why[256];

	if (!loaded) {
		void *handle = open_module(why, sizeof(why));

		loaded = handle ? dlsym(handle, TLS_MODULE_SYMBOL) : NULL;
	}
	if (!loaded)
		return dp_fail(err, ENOPKG, "TLS cannot be used: %s; install libssl3 and distri-proc again", why);
	*module = loaded;
	return 0;
}

int tls_context(const struct tls_module **module, void **context, bool server, struct dp_err *err)
{
	static void *contexts[2];
	struct tls_settings settings;
	struct psk_list keys = { 0 };
	int result = tls_load(module, err);

	if (result < 0)
		return result;
	if (!contexts[server]) {
		tls_settings_from_environment(&settings);
		if (settings.psk_file)
			result = psk_read(&keys, settings.psk_file, err);
		if (result == 0)
			result = (*module)->context_new(&contexts[server], &settings, &keys, server, err);
		psk_list_done(&keys);
	}
	*context = contexts[server];
	return result;
}

/* Waits until the socket is ready. */
static int wait_for(int fd, short events, uint64_t deadline_ns)
{
	struct pollfd poll_fd = { .fd = fd, .events = events };
	uint64_t now = clock_now_ns();

	if (now >= deadline_ns)
		return -ETIMEDOUT;
	return poll(&poll_fd, 1, (int)((deadline_ns - now) / 1000000 + 1)) < 0 && errno != EINTR ? -errno : 0;
}

int tls_connect(struct stream **stream, int fd, const char *host, const char *place, uint64_t deadline_ns, struct dp_err *err)
{
	const struct tls_module *module;
	struct tls_settings settings;
	void *context;
	short events = 0;
	int result = tls_context(&module, &context, false, err);

	if (result < 0 || (result = stream_prepare_socket(fd)) < 0) {
		close(fd);
		dp_err_doing(err, "connect %s", place);
		return result;
	}
	tls_settings_from_environment(&settings);
	*stream = module->stream_new(context, fd, false, settings.name ? settings.name : host);
	if (!*stream)
		return dp_fail_errno(err, ENOMEM, "connect %s", place);
	while ((result = module->shake_hands(*stream, &events)) == -EAGAIN && (result = wait_for(fd, events, deadline_ns)) == 0)
		;
	if (result == 0)
		return 0;
	const char *why = stream_why(*stream);

	dp_fail(err, -result, "connect %s: %s", place, *why ? why : strerror(-result));
	stream_close(*stream);
	*stream = NULL;
	return result;
}
