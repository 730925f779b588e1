#include "migrate/record.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <poll.h>
#include <string.h>

#include "base/base.h"

#define RECORD_LIMIT_BYTES 4096
#define LEASE_LONGEST_NS UINT64_C(3600000000000)

bool switch_boot_id(char boot[static SWITCH_BOOT_BYTES])
{
	cleanup_free char *text = NULL;
	if (io_read_file("/proc/sys/kernel/random/boot_id", &text, 64) < 0)
		return false;
	snprintf(boot, SWITCH_BOOT_BYTES, "%.*s", (int)strcspn(text, "\n"), text);
	return true;
}

int switch_record_write(const char *path, const struct switch_record *record, struct dp_err *err)
{
	char boot[SWITCH_BOOT_BYTES] = "", next[PATH_MAX];
	if (!switch_boot_id(boot) || snprintf(next, sizeof(next), "%s.next", path) >= (int)sizeof(next))
		return dp_fail(err, EIO, "%s: this boot's id cannot be read, or the path is too long", path);
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string("distriproc.switch/1"));
	json_object_object_add(object, "state", json_object_new_string(switch_state_name(record->state)));
	json_object_object_add(object, "lease_ns", json_object_new_uint64(record->lease_ns));
	json_object_object_add(object, "margin_ns", json_object_new_uint64(record->margin_ns));
	json_object_object_add(object, "boot", json_object_new_string(boot));
	const char *text = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PLAIN);
	int ret = io_write_file(next, text, strlen(text), 0600);
	if (!ret && rename(next, path))
		ret = -errno;
	json_object_put(object);
	return ret ? dp_fail_errno(err, -ret, "record %s in %s", switch_state_name(record->state), path) : 0;
}

static bool take_number(json_object *object, const char *name, uint64_t *number)
{
	json_object *value;
	if (!json_object_object_get_ex(object, name, &value) || !json_object_is_type(value, json_type_int))
		return false;
	*number = json_object_get_uint64(value);
	return *number <= LEASE_LONGEST_NS;
}

static bool decode(json_object *object, struct switch_record *record)
{
	char boot[SWITCH_BOOT_BYTES] = "";
	json_object *state, *its_boot;
	if (!json_object_is_type(object, json_type_object) || !json_object_object_get_ex(object, "state", &state) ||
	    !json_object_object_get_ex(object, "boot", &its_boot) || !take_number(object, "lease_ns", &record->lease_ns) ||
	    !take_number(object, "margin_ns", &record->margin_ns))
		return false;
	int parsed = switch_state_parse(json_object_get_string(state));
	if (parsed < 0 || !switch_boot_id(boot))
		return false;
	record->state = (enum switch_state)parsed;
	record->this_boot = !strcmp(boot, json_object_get_string(its_boot));
	return true;
}

int switch_record_read(const char *path, struct switch_record *record, struct dp_err *err)
{
	cleanup_free char *text = NULL;
	*record = (struct switch_record){ .state = SWITCH_FROZEN, .this_boot = true };
	ssize_t length = io_read_file(path, &text, RECORD_LIMIT_BYTES);
	if (length == -ENOENT)
		return 0;
	if (length < 0)
		return dp_fail_errno(err, (int)-length, "read %s", path);
	json_object *object = json_tokener_parse(text);
	bool good = decode(object, record);
	json_object_put(object);
	return good ? 0 : dp_fail(err, EBADMSG, "%s is no record of a migration", path);
}

static void sleep_until(uint64_t until_ns)
{
	for (uint64_t now = switch_clock_ns(); now < until_ns; now = switch_clock_ns())
		poll(NULL, 0, (int)DP_MIN((until_ns - now) / 1000000u + 1, 60000u));
}

bool switch_heir(const char *path)
{
	struct switch_record record;
	struct switch_source source;
	int ret = switch_record_read(path, &record, NULL);
	if (ret)
		record = (struct switch_record){ SWITCH_GRANTED, LEASE_LONGEST_NS, SWITCH_MARGIN_NS, true };
	switch_source_inherit(&source, record.state, record.lease_ns, record.margin_ns, switch_clock_ns());
	if (source.state == SWITCH_GRANTED)
		sleep_until(source.until_ns);
	record.state = switch_source_tick(&source, switch_clock_ns());
	/* Where it cannot be written the tree goes on all the same: the destination's lease is over, and nobody renews it. */
	if (record.state == SWITCH_RESUMED)
		switch_record_write(path, &record, NULL);
	return record.state == SWITCH_RELEASED;
}
