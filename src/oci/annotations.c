#include "oci/annotations.h"

#include <ctype.h>
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

#define PREFIX "distri-proc.io/"
#define CONFIG_LIMIT (16u << 20)
#define HOST_FILE "/etc/distri-proc/runtime.conf"

/* ---- a container's ---- */

static int copy(const char *name, const char *value, char *to, size_t size, struct dp_err *err)
{
	if (snprintf(to, size, "%s", value) >= (int)size)
		return dp_fail(err, EINVAL, "annotation " PREFIX "%s is longer than %zu characters", name, size - 1);
	return 0;
}

static int take_enabled(const char *value, bool *enabled, struct dp_err *err)
{
	*enabled = !strcmp(value, "true") || !strcmp(value, "1") || !strcmp(value, "yes");
	if (*enabled || !strcmp(value, "false") || !strcmp(value, "0") || !strcmp(value, "no"))
		return 0;
	return dp_fail(err, EINVAL, "annotation " PREFIX "enabled takes true or false, not `%.40s`", value);
}

static int take_policy(const char *value, enum oci_policy *policy, struct dp_err *err)
{
	static const char *const names[] = { [OCI_LAZY] = "lazy", [OCI_HOT_LOCAL] = "hot-local", [OCI_FULL] = "full" };
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++)
		if (!strcmp(value, names[i])) {
			*policy = (enum oci_policy)i;
			return 0;
		}
	return dp_fail(err, EINVAL, "annotation " PREFIX "memory-policy takes lazy, hot-local or full, not `%.40s`", value);
}

static int take(struct oci_wishes *wishes, const char *name, const char *value, struct dp_err *err)
{
	if (!strcmp(name, "enabled"))
		return take_enabled(value, &wishes->enabled, err);
	if (!strcmp(name, "memory-policy"))
		return take_policy(value, &wishes->policy, err);
	if (!strcmp(name, "pool"))
		return copy(name, value, wishes->pool, sizeof(wishes->pool), err);
	if (!strcmp(name, "snapshot"))
		return copy(name, value, wishes->snapshot, sizeof(wishes->snapshot), err);
	if (!strcmp(name, "remote-memory"))
		return copy(name, value, wishes->remote_memory, sizeof(wishes->remote_memory), err);
	if (!strcmp(name, "prefetch"))
		return copy(name, value, wishes->prefetch, sizeof(wishes->prefetch), err);
	if (!strcmp(name, "start-from"))
		return copy(name, value, wishes->start_from, sizeof(wishes->start_from), err);
	if (!strcmp(name, "runtime"))
		return copy(name, value, wishes->runtime, sizeof(wishes->runtime), err);
	return dp_fail(err, EINVAL,
		       "no annotation " PREFIX "%.60s: there are enabled, memory-policy, remote-memory, pool, prefetch, "
		       "snapshot, start-from and runtime",
		       name);
}

int oci_wishes_parse(const char *config_json, struct oci_wishes *wishes, struct dp_err *err)
{
	json_object *config = json_tokener_parse(config_json), *annotations;
	int ret = 0;
	*wishes = (struct oci_wishes){ 0 };
	if (!json_object_is_type(config, json_type_object)) {
		json_object_put(config);
		return dp_fail(err, EBADMSG, "the bundle's config.json is no JSON object");
	}
	if (json_object_object_get_ex(config, "annotations", &annotations) &&
	    json_object_is_type(annotations, json_type_object)) {
		json_object_object_foreach(annotations, key, value) {
			bool ours = !strncmp(key, PREFIX, strlen(PREFIX)) && json_object_is_type(value, json_type_string);
			if (ours && !ret)
				ret = take(wishes, key + strlen(PREFIX), json_object_get_string(value), err);
		}
	}
	json_object_put(config);
	return ret;
}

int oci_wishes_read(const char *bundle, struct oci_wishes *wishes, struct dp_err *err)
{
	cleanup_free char *path = format_text("%s/config.json", bundle);
	cleanup_free char *text = NULL;
	if (!path)
		return dp_fail(err, ENOMEM, "out of memory");
	ssize_t length = io_read_file(path, &text, CONFIG_LIMIT);
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read %s", path);
	int ret = oci_wishes_parse(text, wishes, err);
	if (ret)
		dp_err_doing(err, "%s", path);
	return ret;
}

/* ---- the host's ---- */

static const struct {
	const char *name, *variable;
} variables[] = {
	{ "registry", "DISTRI_PROC_ROOT" },         { "psk-file", "DISTRI_PROC_PSK_FILE" },
	{ "tls-cert", "DISTRI_PROC_TLS_CERT" },     { "tls-key", "DISTRI_PROC_TLS_KEY" },
	{ "tls-ca", "DISTRI_PROC_TLS_CA" },         { "tls-name", "DISTRI_PROC_TLS_NAME" },
	{ "criu", "DISTRI_PROC_CRIU" },             { "allow-plaintext", "DISTRI_PROC_ALLOW_PLAINTEXT" },
};

static char *trim(char *text)
{
	while (isspace((unsigned char)*text))
		text++;
	size_t length = strlen(text);
	while (length && isspace((unsigned char)text[length - 1]))
		text[--length] = 0;
	return text;
}

static int take_setting(struct oci_host *host, const char *name, const char *value,
			int (*set)(const char *name, const char *value, int overwrite), struct dp_err *err)
{
	const struct { const char *name; char *to; size_t size; } texts[] = {
		{ "runtime", host->runtime, sizeof(host->runtime) },
		{ "runtimes", host->runtimes, sizeof(host->runtimes) },
		{ "pool", host->pool, sizeof(host->pool) },
	};
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++)
		if (!strcmp(name, texts[i].name))
			return snprintf(texts[i].to, texts[i].size, "%s", value) < (int)texts[i].size ? 0 :
			       dp_fail(err, EINVAL, "%s is too long", name);
	for (size_t i = 0; i < ARRAY_LENGTH(variables); i++)
		if (!strcmp(name, variables[i].name))
			return set(variables[i].variable, value, 0) ? dp_fail(err, ENOMEM, "out of memory") : 0;
	return dp_fail(err, EINVAL,
		       "no setting `%.60s`: there are runtime, runtimes, pool, registry, psk-file, tls-cert, tls-key, tls-ca, tls-name, "
		       "allow-plaintext and criu",
		       name);
}

int oci_host_parse(const char *text, struct oci_host *host, int (*set)(const char *name, const char *value, int overwrite),
		   struct dp_err *err)
{
	cleanup_free char *copied = strdup(text);
	char *rest = copied, *line;
	int ret = copied ? 0 : dp_fail(err, ENOMEM, "out of memory");
	for (unsigned number = 1; !ret && (line = strsep(&rest, "\n")); number++) {
		line[strcspn(line, "#")] = 0;
		line = trim(line);
		char *equals = strchr(line, '=');
		if (!*line)
			continue;
		if (equals)
			*equals = 0;
		ret = equals ? take_setting(host, trim(line), trim(equals + 1), set, err)
			     : dp_fail(err, EINVAL, "`%.60s` is no `name = value`", line);
		if (ret)
			dp_err_doing(err, "line %u", number);
	}
	return ret;
}

int oci_host_read(struct oci_host *host, struct dp_err *err)
{
	const char *override = getenv("DISTRI_PROC_RUNTIME_CONF"), *runtime = getenv("DISTRI_PROC_RUNTIME");
	const char *path = override && *override ? override : HOST_FILE;
	cleanup_free char *text = NULL;
	*host = (struct oci_host){ .runtime = "runc" };
	ssize_t length = io_read_file(path, &text, CONFIG_LIMIT);
	int ret = length >= 0 ? oci_host_parse(text, host, setenv, err) : 0;
	if (length < 0 && length != -ENOENT)
		ret = dp_fail_errno(err, (int)-length, "read");
	if (ret)
		dp_err_doing(err, "%s", path);
	if (runtime && *runtime && snprintf(host->runtime, sizeof(host->runtime), "%s", runtime) >= (int)sizeof(host->runtime))
		ret = dp_fail(err, EINVAL, "DISTRI_PROC_RUNTIME is too long");
	return ret;
}
