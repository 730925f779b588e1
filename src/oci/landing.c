/* Where a container comes to. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/base.h"
#include "oci/moving.h"

#define MOUNTS_LIMIT (8u << 20)
#define GROUP_TRIES 100u
#define GROUP_PAUSE_US 20000

static const char *text_of(json_object *object, const char *name)
{
	json_object *value;
	return json_object_object_get_ex(object, name, &value) && json_object_is_type(value, json_type_string) ?
		       json_object_get_string(value) :
		       NULL;
}

static bool flag_of(json_object *object, const char *name)
{
	json_object *value;
	return json_object_object_get_ex(object, name, &value) && json_object_get_boolean(value);
}

/* ---- what the container wants to find ---- */

/* HERE of "SOURCE=HERE", or NULL. */
static const char *mapped_to(json_object *volumes, const char *source)
{
	size_t length = strlen(source);
	for (size_t i = 0; json_object_is_type(volumes, json_type_array) && i < json_object_array_length(volumes); i++) {
		const char *text = json_object_get_string(json_object_array_get_idx(volumes, i));
		if (text && !strncmp(text, source, length) && text[length] == '=')
			return text + length + 1;
	}
	return NULL;
}

static bool is_bind(json_object *mount)
{
	json_object *options;
	const char *type = text_of(mount, "type");
	if (type && !strcmp(type, "bind"))
		return true;
	for (size_t i = 0; json_object_object_get_ex(mount, "options", &options) && json_object_is_type(options, json_type_array) &&
			   i < json_object_array_length(options); i++) {
		const char *option = json_object_get_string(json_object_array_get_idx(options, i));
		if (option && (!strcmp(option, "bind") || !strcmp(option, "rbind")))
			return true;
	}
	return false;
}

static int place_volume(const struct oci_landing *landing, json_object *mount, json_object *volumes, struct dp_err *err)
{
	const char *source = text_of(mount, "source"), *place = text_of(mount, "destination");
	if (!source || !place)
		return dp_fail(err, EBADMSG, "its config.json has a bind mount without a source");
	const char *here = mapped_to(volumes, source);
	cleanup_free char *path = format_text("%s%s%s", *(here ? here : source) == '/' ? "" : landing->bundle,
					      *(here ? here : source) == '/' ? "" : "/", here ? here : source);
	if (!path || access(path, F_OK))
		return dp_fail(err, ENOENT, "this host has no %s, which the container has mounted at %s: make it there, or say what to mount "
			       "with --volume %s=PATH", here ? here : source, place, source);
	if (here)
		json_object_object_add(mount, "source", json_object_new_string(here));
	return 0;
}

static int place_volumes(const struct oci_landing *landing, json_object *config, json_object *volumes, struct dp_err *err)
{
	json_object *mounts;
	int ret = 0;
	if (!json_object_object_get_ex(config, "mounts", &mounts) || !json_object_is_type(mounts, json_type_array))
		return 0;
	for (size_t i = 0; i < json_object_array_length(mounts) && !ret; i++) {
		json_object *mount = json_object_array_get_idx(mounts, i);
		if (is_bind(mount))
			ret = place_volume(landing, mount, volumes, err);
	}
	return ret;
}

/* A namespace that it shares with somebody has to be here by the same name. */
static int check_namespaces(json_object *config, struct dp_err *err)
{
	json_object *platform, *namespaces;
	if (!json_object_object_get_ex(config, "linux", &platform) || !json_object_object_get_ex(platform, "namespaces", &namespaces))
		return 0;
	for (size_t i = 0; json_object_is_type(namespaces, json_type_array) && i < json_object_array_length(namespaces); i++) {
		const char *path = text_of(json_object_array_get_idx(namespaces, i), "path");
		if (path && *path && access(path, F_OK))
			return dp_fail(err, ENOENT, "this host has no namespace %s, in which the container is: make it (`ip netns add` for one in "
				       "/run/netns)", path);
	}
	return 0;
}

/* ---- the root filesystem ---- */

static bool is_mounted(const char *path)
{
	cleanup_free char *mounts = NULL, *lower = NULL, *upper = NULL, *work = NULL;
	return io_read_file("/proc/self/mountinfo", &mounts, MOUNTS_LIMIT) >= 0 &&
	       oci_overlay_find(mounts, path, &lower, &upper, &work);
}

static int check_layers(const char *lower, struct dp_err *err)
{
	cleanup_free char *text = strdup(lower);
	char *rest = text;
	for (char *layer = strsep(&rest, ":"); layer; layer = strsep(&rest, ":"))
		if (access(layer, F_OK))
			return dp_fail(err, ENOENT, "this host has no %s, a layer of the container's root filesystem: bring its image here", layer);
	return 0;
}

static int plan_rootfs(struct oci_landing *landing, json_object *config, json_object *overlay, struct dp_err *err)
{
	json_object *root;
	const char *path = json_object_object_get_ex(config, "root", &root) ? text_of(root, "path") : NULL;
	if (!path || (size_t)snprintf(landing->rootfs, sizeof(landing->rootfs), "%s%s%s", *path == '/' ? "" : landing->bundle,
				      *path == '/' ? "" : "/", path) >= sizeof(landing->rootfs))
		return dp_fail(err, EBADMSG, "its config.json names no root filesystem");
	landing->makes_rootfs = access(landing->rootfs, F_OK);
	if (!overlay || (!landing->makes_rootfs && is_mounted(landing->rootfs)))
		return 0;
	const char *lower = text_of(overlay, "lower"), *upper = text_of(overlay, "upper"), *work = text_of(overlay, "work");
	if (!lower || !upper || !work || *upper != '/' || *work != '/')
		return dp_fail(err, EBADMSG, "its root filesystem is an overlay without directories");
	landing->lower = strdup(lower);
	landing->upper = strdup(upper);
	landing->work = strdup(work);
	if (!landing->lower || !landing->upper || !landing->work)
		return dp_fail(err, ENOMEM, "out of memory");
	landing->makes_upper = access(upper, F_OK);
	landing->makes_work = access(work, F_OK);
	return check_layers(lower, err);
}

static int plan_bundle(struct oci_landing *landing, json_object *config, struct dp_err *err)
{
	cleanup_free char *path = format_text("%s/config.json", landing->bundle);
	const char *text = json_object_to_json_string_ext(config, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_NOSLASHESCAPE);
	landing->config = strdup(text);
	if (!path || !landing->config)
		return dp_fail(err, ENOMEM, "out of memory");
	landing->makes_bundle = access(landing->bundle, F_OK);
	if (io_read_file(path, &landing->old_config, OCI_CONFIG_LIMIT) < 0)
		landing->old_config = NULL;
	json_object *old = landing->old_config ? json_tokener_parse(landing->old_config) : NULL;
	landing->same_config = old && json_object_equal(old, config);
	json_object_put(old);
	return 0;
}

/* ---- its control group ---- */

/* Calls `each` with the path of the group in every hierarchy. true where one said so. */
static bool each_group(const char *group, bool (*each)(const char *path))
{
	DIR *list = opendir("/sys/fs/cgroup");
	bool any = false;
	for (struct dirent *entry = list ? readdir(list) : NULL; entry; entry = readdir(list)) {
		cleanup_free char *path = entry->d_name[0] == '.' ? NULL : format_text("/sys/fs/cgroup/%s%s", entry->d_name, group);
		if (path && each(path))
			any = true;
	}
	if (list)
		closedir(list);
	cleanup_free char *unified = format_text("/sys/fs/cgroup%s", group);
	return (unified && each(unified)) || any;
}

static bool is_there(const char *path)
{
	return access(path, F_OK) == 0;
}

/* One that is empty; true: it is there still. */
static bool remove_group(const char *path)
{
	return rmdir(path) && errno == EBUSY;
}

static void plan_group(struct oci_landing *landing, json_object *config)
{
	json_object *platform;
	const char *path = json_object_object_get_ex(config, "linux", &platform) ? text_of(platform, "cgroupsPath") : NULL;
	bool plain = path && *path == '/' && path[1] && !strstr(path, "..") && strlen(path) < sizeof(landing->group);
	if (plain && !each_group(path, is_there))
		strcpy(landing->group, path);
}

/* A runtime that was killed has left it behind; its processes are about to be gone. */
static void remove_groups(const struct oci_landing *landing)
{
	for (unsigned i = 0; landing->group[0] && i < GROUP_TRIES && each_group(landing->group, remove_group); i++)
		usleep(GROUP_PAUSE_US);
}

/* As runtimes name them; it becomes part of paths. */
static bool is_id(const char *id)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.";
	return id && *id && strlen(id) < 256 && strspn(id, letters) == strlen(id) && *id != '.' && *id != '-';
}

int oci_landing_plan(struct oci_landing *landing, const struct oci_runtime *runtime, const char *id, json_object *facts,
		     const char *bundle, json_object *volumes, struct dp_err *err)
{
	json_object *config, *overlay = NULL;
	struct oci_state state;
	const char *place = bundle ? bundle : text_of(facts, "bundle");
	*landing = (struct oci_landing){ .makes_bundle = false };
	if (!is_id(id) || !place || *place != '/' || strlen(place) >= sizeof(landing->bundle) ||
	    !json_object_object_get_ex(facts, "config", &config) || !json_object_is_type(config, json_type_object))
		return dp_fail(err, EBADMSG, "a container without a name, a bundle or a configuration");
	strcpy(landing->id, id);
	strcpy(landing->bundle, place);
	json_object_object_get_ex(facts, "overlay", &overlay);
	int ret = oci_state(runtime, id, true, &state, err);
	if (!ret)
		return dp_fail(err, EEXIST, "%s has a container %s here already", runtime->program, id);
	if (ret != -ENOENT)
		return ret;
	ret = place_volumes(landing, config, volumes, err);
	if (!ret)
		ret = check_namespaces(config, err);
	if (!ret)
		ret = plan_rootfs(landing, config, overlay, err);
	plan_group(landing, config);
	return ret ? ret : plan_bundle(landing, config, err);
}

/* ---- made, and taken away again ---- */

static int make_directories(const char *path, struct dp_err *err)
{
	cleanup_free char *text = strdup(path);
	for (char *at = text ? text + 1 : NULL; at && (at = strchr(at, '/')); at++) {
		*at = 0;
		if (mkdir(text, 0755) && errno != EEXIST)
			return dp_fail_errno(err, errno, "make %s", text);
		*at = '/';
	}
	return mkdir(path, 0755) && errno != EEXIST ? dp_fail_errno(err, errno, "make %s", path) : 0;
}

static int write_config(const struct oci_landing *landing, const char *config, struct dp_err *err)
{
	cleanup_free char *fresh = format_text("%s/.config.json.fresh", landing->bundle);
	cleanup_free char *path = format_text("%s/config.json", landing->bundle);
	int ret = fresh && path ? io_write_file(fresh, config, strlen(config), 0600) : -ENOMEM;
	if (!ret && rename(fresh, path))
		ret = -errno;
	return ret ? dp_fail_errno(err, -ret, "write %s/config.json", landing->bundle) : 0;
}

static int mount_overlay(const struct oci_landing *landing, struct dp_err *err)
{
	cleanup_free char *options = format_text("lowerdir=%s,upperdir=%s,workdir=%s", landing->lower, landing->upper, landing->work);
	int ret = make_directories(landing->upper, err);
	if (!ret)
		ret = make_directories(landing->work, err);
	if (!ret && (!options || mount("overlay", landing->rootfs, "overlay", 0, options)))
		ret = dp_fail_errno(err, options ? errno : ENOMEM, "mount an overlay at %s", landing->rootfs);
	return ret;
}

int oci_landing_make(const struct oci_landing *landing, struct dp_err *err)
{
	int ret = make_directories(landing->bundle, err);
	if (!ret)
		ret = make_directories(landing->rootfs, err);
	if (!ret && landing->lower)
		ret = mount_overlay(landing, err);
	if (!ret && !landing->same_config)
		ret = write_config(landing, landing->config, err);
	return ret;
}

void oci_landing_undo(const struct oci_landing *landing)
{
	remove_groups(landing);
	cleanup_free char *config = format_text("%s/config.json", landing->bundle);
	bool unmounted = !landing->lower || !is_mounted(landing->rootfs) || !umount2(landing->rootfs, UMOUNT_NOFOLLOW);
	if (unmounted && landing->makes_upper)
		remove_tree(landing->upper);
	if (unmounted && landing->makes_work)
		remove_tree(landing->work);
	if (unmounted && landing->makes_rootfs)
		remove_tree(landing->rootfs);
	if (unmounted && landing->makes_bundle)
		remove_tree(landing->bundle);
	else if (!landing->same_config && landing->old_config)
		write_config(landing, landing->old_config, NULL);
	else if (!landing->same_config && config)
		unlink(config);
}

void oci_landing_done(struct oci_landing *landing)
{
	char **texts[] = { &landing->config, &landing->old_config, &landing->lower, &landing->upper, &landing->work };
	for (size_t i = 0; i < ARRAY_LENGTH(texts); i++) {
		free(*texts[i]);
		*texts[i] = NULL;
	}
}

/* ---- kept ---- */

static void add_text(json_object *object, const char *name, const char *text)
{
	if (text)
		json_object_object_add(object, name, json_object_new_string(text));
}

json_object *oci_landing_save(const struct oci_landing *landing)
{
	json_object *saved = json_object_new_object();
	const struct { const char *name; bool flag; } flags[] = {
		{ "same_config", landing->same_config }, { "makes_bundle", landing->makes_bundle },
		{ "makes_rootfs", landing->makes_rootfs }, { "makes_upper", landing->makes_upper },
		{ "makes_work", landing->makes_work },
	};
	add_text(saved, "id", landing->id);
	add_text(saved, "bundle", landing->bundle);
	add_text(saved, "rootfs", landing->rootfs);
	add_text(saved, "runtime_root", landing->runtime_root);
	add_text(saved, "group", landing->group);
	add_text(saved, "old_config", landing->old_config);
	add_text(saved, "lower", landing->lower);
	add_text(saved, "upper", landing->upper);
	add_text(saved, "work", landing->work);
	for (size_t i = 0; i < ARRAY_LENGTH(flags); i++)
		json_object_object_add(saved, flags[i].name, json_object_new_boolean(flags[i].flag));
	return saved;
}

static int load_text(json_object *saved, const char *name, char *text, size_t size)
{
	const char *value = text_of(saved, name);
	return value && (size_t)snprintf(text, size, "%s", value) < size ? 0 : -EBADMSG;
}

static char *copy_text(json_object *saved, const char *name)
{
	const char *value = text_of(saved, name);
	return value ? strdup(value) : NULL;
}

int oci_landing_load(struct oci_landing *landing, json_object *saved, struct dp_err *err)
{
	*landing = (struct oci_landing){ .same_config = flag_of(saved, "same_config"), .makes_bundle = flag_of(saved, "makes_bundle"),
					 .makes_rootfs = flag_of(saved, "makes_rootfs"), .makes_upper = flag_of(saved, "makes_upper"),
					 .makes_work = flag_of(saved, "makes_work") };
	if (load_text(saved, "id", landing->id, sizeof(landing->id)) ||
	    load_text(saved, "bundle", landing->bundle, sizeof(landing->bundle)) ||
	    load_text(saved, "rootfs", landing->rootfs, sizeof(landing->rootfs)) ||
	    load_text(saved, "group", landing->group, sizeof(landing->group)) ||
	    load_text(saved, "runtime_root", landing->runtime_root, sizeof(landing->runtime_root)))
		return dp_fail(err, EBADMSG, "what was noted of a container cannot be understood");
	landing->old_config = copy_text(saved, "old_config");
	landing->lower = copy_text(saved, "lower");
	landing->upper = copy_text(saved, "upper");
	landing->work = copy_text(saved, "work");
	return 0;
}
