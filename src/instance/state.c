/* state.json: a struct instance as text and back. */
#include <errno.h>
#include <json-c/json.h>
#include <string.h>

#include "base/base.h"
#include "instance/instance.h"

#define STATE_SCHEMA "distriproc.instance/1"

static void add_process(json_object *object, const char *name, const struct instance_process *process)
{
	json_object *entry = json_object_new_object();
	json_object_object_add(entry, "pid", json_object_new_int(process->pid));
	json_object_object_add(entry, "start_time", json_object_new_uint64(process->start_time));
	json_object_object_add(object, name, entry);
}

char *instance_encode(const struct instance *instance)
{
	json_object *object = json_object_new_object();
	json_object_object_add(object, "schema", json_object_new_string(STATE_SCHEMA));
	json_object_object_add(object, "id", json_object_new_string(instance->id));
	json_object_object_add(object, "name", json_object_new_string(instance->name));
	json_object_object_add(object, "snapshot", json_object_new_string(instance->snapshot));
	json_object_object_add(object, "pool", json_object_new_string(instance->pool));
	if (instance->group[0])
		json_object_object_add(object, "group", json_object_new_string(instance->group));
	if (instance->spare)
		json_object_object_add(object, "spare", json_object_new_boolean(true));
	if (instance->container[0])
		json_object_object_add(object, "container", json_object_new_string(instance->container));
	json_object_object_add(object, "running", json_object_new_boolean(instance->running));
	json_object_object_add(object, "own_pid_namespace", json_object_new_boolean(instance->own_pid_namespace));
	add_process(object, "root", &instance->root);
	add_process(object, "init", &instance->init);
	add_process(object, "pager", &instance->pager);
	add_process(object, "supervisor", &instance->supervisor);
	json_object_object_add(object, "created_unix_ns", json_object_new_uint64(instance->created_unix_ns));
	json_object_object_add(object, "snapshot_pages", json_object_new_uint64(instance->snapshot_pages));
	json_object_object_add(object, "budget_bytes", json_object_new_uint64(instance->budget_bytes));
	json_object_object_add(object, "restore_ns", json_object_new_uint64(instance->restore_ns));
	const char *text = json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
	char *copy = text ? format_text("%s\n", text) : NULL;
	json_object_put(object);
	return copy;
}

static bool get_text(json_object *object, const char *name, char *to, size_t size)
{
	json_object *value;
	if (!json_object_object_get_ex(object, name, &value) || !json_object_is_type(value, json_type_string))
		return false;
	const char *text = json_object_get_string(value);
	if (strlen(text) >= size)
		return false;
	strcpy(to, text);
	return true;
}

static bool get_number(json_object *object, const char *name, uint64_t *to)
{
	json_object *value;
	if (!json_object_object_get_ex(object, name, &value) || !json_object_is_type(value, json_type_int))
		return false;
	*to = json_object_get_uint64(value);
	return true;
}

static bool get_flag(json_object *object, const char *name, bool *to)
{
	json_object *value;
	if (!json_object_object_get_ex(object, name, &value) || !json_object_is_type(value, json_type_boolean))
		return false;
	*to = json_object_get_boolean(value);
	return true;
}

static bool has(json_object *object, const char *name)
{
	return json_object_object_get_ex(object, name, NULL);
}

static bool get_process(json_object *object, const char *name, struct instance_process *to)
{
	json_object *value;
	uint64_t pid;
	if (!json_object_object_get_ex(object, name, &value) || !json_object_is_type(value, json_type_object) ||
	    !get_number(value, "pid", &pid) || !get_number(value, "start_time", &to->start_time) || pid > INT32_MAX)
		return false;
	to->pid = (pid_t)pid;
	return true;
}

int instance_decode(struct instance *instance, const char *json, struct dp_err *err)
{
	json_object *object = json_tokener_parse(json);
	char schema[64] = "";
	*instance = (struct instance){ 0 };
	bool good = object && json_object_is_type(object, json_type_object) &&
		    get_text(object, "schema", schema, sizeof(schema)) &&
		    !strcmp(schema, STATE_SCHEMA) && get_text(object, "id", instance->id, sizeof(instance->id)) &&
		    get_text(object, "name", instance->name, sizeof(instance->name)) &&
		    get_text(object, "snapshot", instance->snapshot, sizeof(instance->snapshot)) &&
		    get_text(object, "pool", instance->pool, sizeof(instance->pool)) &&
		    (!json_object_object_get_ex(object, "container", NULL) ||
		     get_text(object, "container", instance->container, sizeof(instance->container))) &&
		    (!has(object, "group") || get_text(object, "group", instance->group, sizeof(instance->group))) &&
		    (!has(object, "spare") || get_flag(object, "spare", &instance->spare)) &&
		    get_flag(object, "running", &instance->running) &&
		    get_flag(object, "own_pid_namespace", &instance->own_pid_namespace) &&
		    get_process(object, "root", &instance->root) && get_process(object, "init", &instance->init) &&
		    get_process(object, "pager", &instance->pager) && get_process(object, "supervisor", &instance->supervisor) &&
		    get_number(object, "created_unix_ns", &instance->created_unix_ns) &&
		    get_number(object, "snapshot_pages", &instance->snapshot_pages) &&
		    get_number(object, "budget_bytes", &instance->budget_bytes) &&
		    get_number(object, "restore_ns", &instance->restore_ns);
	json_object_put(object);
	if (!good)
		return dp_fail(err, EBADMSG, "state of the instance is not what this version writes (%s)", STATE_SCHEMA);
	return 0;
}
