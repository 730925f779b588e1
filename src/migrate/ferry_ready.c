/* What the destination does before the source is frozen: it refuses what it must refuse, and has ready what it will need. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/base.h"
#include "migrate/ferry_container.h"
#include "migrate/ferry_in.h"
#include "sys/criu.h"

/* ---- the lease's page, and what a ferry that follows needs ---- */

int in_map_lease(struct in *in, bool made)
{
	char path[PATH_MAX];
	cleanup_fd int fd = open(ferry_path(in->root, "in", in->id, "lease", path), O_RDWR | O_CLOEXEC | (made ? O_CREAT : 0), 0600);
	if (fd < 0 || (made && ftruncate(fd, PAGE_BYTES)))
		return dp_fail_errno(&in->err, errno, "make %s", path);
	void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (page == MAP_FAILED)
		return dp_fail_errno(&in->err, errno, "map %s", path);
	in->lease = page;
	return 0;
}

static int write_state(struct in *in)
{
	char path[PATH_MAX], text[64], uri[1400];
	json_object *state = json_object_new_object();
	line_add_text(state, "token", in->token);
	line_add_text(state, "boot", in->boot);
	line_add_text(state, "name", in->name);
	line_add_text(state, "back", endpoint_pool_text(&in->back, uri, sizeof(uri)));
	line_add_number(state, "lease_ns", in->place.lease_ns);
	line_add_flag(state, "in_pool", in->in_pool);
	if (in->address_moves)
		line_add_text(state, "address", address_text(&in->address, text, sizeof(text)));
	const char *json = json_object_to_json_string_ext(state, JSON_C_TO_STRING_PLAIN);
	int ret = io_write_file(ferry_path(in->root, "in", in->id, "state.json", path), json, strlen(json), 0600);
	json_object_put(state);
	return ret ? dp_fail_errno(&in->err, -ret, "write %s", path) : 0;
}

static int decode_state(struct in *in, json_object *state)
{
	const char *token = line_text(state, "token"), *boot = line_text(state, "boot"), *name = line_text(state, "name");
	const char *back = line_text(state, "back"), *address = line_text(state, "address");
	if (!ferry_id_is_proper(token) || !boot || !name || !back || strlen(boot) >= sizeof(in->boot) ||
	    strlen(name) >= sizeof(in->name) || line_number(state, "lease_ns") <= 0)
		return dp_fail(&in->err, EBADMSG, "the state of migration %s cannot be understood", in->id);
	strcpy(in->token, token);
	strcpy(in->boot, boot);
	strcpy(in->name, name);
	switch_destination_inherit(&in->place, (uint64_t)line_number(state, "lease_ns"));
	if (address && address_parse(&in->address, address, &in->err))
		return -EBADMSG;
	in->address_moves = address;
	in->in_pool = line_flag(state, "in_pool");
	return endpoint_parse(&in->back, back, &in->err);
}

int in_read_state(struct in *in, const char *id)
{
	char path[PATH_MAX];
	cleanup_free char *text = NULL;
	strcpy(in->id, id);
	ssize_t length = io_read_file(ferry_path(in->root, "in", id, "state.json", path), &text, 65536);
	if (length < 0)
		return dp_fail_errno(&in->err, (int)-length, "read %s", path);
	json_object *state = json_tokener_parse(text);
	int ret = decode_state(in, state);
	json_object_put(state);
	return ret;
}

/* ---- checks ---- */

static int check_files(struct in *in)
{
	json_object *files;
	if (!json_object_object_get_ex(in->prepare, "files", &files) || !json_object_is_type(files, json_type_array))
		return 0;
	for (size_t i = 0; i < json_object_array_length(files); i++) {
		json_object *file = json_object_array_get_idx(files, i);
		const char *path = line_text(file, "path");
		struct stat info;
		if (!path || path[0] != '/')
			return dp_fail(&in->err, EBADMSG, "a list of files that is none");
		if (stat(path, &info))
			return dp_fail(&in->err, ENOTUNIQ, "this host has no %s, which the process has mapped: give it the same files", path);
		if (info.st_size != line_number(file, "bytes"))
			return dp_fail(&in->err, ENOTUNIQ, "%s is not the file that the process has mapped (%lld bytes here, %lld there): "
				       "give both hosts the same files", path, (long long)info.st_size,
				       (long long)line_number(file, "bytes"));
	}
	return 0;
}

static int take_identity(struct in *in)
{
	const char *id = line_text(in->prepare, "id"), *token = line_text(in->prepare, "token");
	const char *boot = line_text(in->prepare, "boot"), *name = line_text(in->prepare, "name");
	int64_t lease_ns = line_number(in->prepare, "lease_ns");
	if (!ferry_id_is_proper(id) || !ferry_id_is_proper(token) || !boot || strlen(boot) >= sizeof(in->boot) ||
	    lease_ns < (int64_t)SWITCH_LEASE_LEAST_NS || lease_ns > INT64_C(3600000000000))
		return dp_fail(&in->err, EBADMSG, "a request of another version, or of no agent");
	strcpy(in->id, id);
	strcpy(in->token, token);
	strcpy(in->boot, boot);
	if (name && strlen(name) < sizeof(in->name))
		strcpy(in->name, name);
	else
		snprintf(in->name, sizeof(in->name), "migrated-%.12s", id);
	in->in_pool = line_flag(in->prepare, "ahead") && !line_flag(in->prepare, "landing");
	switch_destination_init(&in->place, (uint64_t)lease_ns);
	return 0;
}

static int check_name(struct in *in)
{
	struct instance *list;
	size_t count;
	int ret = instance_list(in->root, &list, &count, &in->err);
	for (size_t i = 0; i < count && !ret; i++)
		if (!strcmp(list[i].name, in->name))
			ret = dp_fail(&in->err, EEXIST, "an instance named %s runs here already", in->name);
	free(list);
	return ret;
}

static int take_back(struct in *in)
{
	struct stream_peer peer;
	int64_t port = line_number(in->prepare, "back_port");
	stream_peer(in->source.stream, &peer);
	if (!stream_is_network(in->source.stream) || port <= 0 || port > 65535)
		return dp_fail(&in->err, EBADMSG, "the source does not say where its agent listens");
	in->back = (struct endpoint){ .kind = ENDPOINT_TCP, .port = (uint16_t)port, .tls = line_flag(in->prepare, "back_tls") };
	snprintf(in->back.host, sizeof(in->back.host), "%s", peer.host);
	return 0;
}

static int take_address(struct in *in)
{
	const char *text = line_text(in->prepare, "address");
	bool there = false;
	if (!text)
		return 0;
	int ret = address_parse(&in->address, text, &in->err);
	if (!ret)
		ret = address_find(&in->address, &there, &in->err);
	if (!ret && there)
		ret = dp_fail(&in->err, EADDRINUSE, "this host has the address of %s already", text);
	in->address_moves = !ret;
	return ret;
}

static int open_gate(struct in *in)
{
	struct endpoint place = { .kind = ENDPOINT_UNIX };
	char path[PATH_MAX], self[PATH_MAX];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (length < 0)
		return dp_fail_errno(&in->err, errno, "read /proc/self/exe");
	self[length] = 0;
	if (symlink(self, ferry_path(in->root, "in", in->id, FERRY_GATE_ACTION, path)))
		return dp_fail_errno(&in->err, errno, "make %s", path);
	if (strlen(ferry_path(in->root, "in", in->id, "gate.sock", path)) >= sizeof(place.path))
		return dp_fail(&in->err, ENAMETOOLONG, "%s: shorter, please", path);
	strcpy(place.path, path);
	return listener_open(&in->gate, &place, false, &in->err);
}

int in_get_ready(struct in *in, json_object *prepare, json_object *answer)
{
	char criu[256];
	in->prepare = prepare;
	int ret = take_identity(in);
	if (!ret)
		ret = criu_find(criu, &in->err);
	if (!ret)
		ret = check_files(in);
	if (!ret)
		ret = check_name(in);
	if (!ret)
		ret = take_back(in);
	if (!ret)
		ret = take_address(in);
	if (!ret)
		ret = ferry_make_home(in->root, &in->err);
	if (!ret)
		ret = in->lock_fd = ferry_claim(in->root, "in", in->id, &in->err);
	if (ret >= 0)
		ret = write_state(in);
	if (!ret)
		ret = in_map_lease(in, true);
	if (!ret)
		ret = container_in_ready(in, answer);
	if (!ret)
		ret = open_gate(in);
	if (!ret)
		ret = in_check_pool(in);
	if (!ret)
		ret = in_start_landing(in);
	if (!ret)
		ret = in_reach(in);
	if (!ret && in->address_moves) {
		ret = address_close(&in->address, &in->err);
		in->closed = !ret;
		in->announcer = address_announcer();
	}
	if (!ret)
		ret = in_start_restorer(in);
	return ret;
}
