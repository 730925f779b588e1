/* The control socket: both its ends. A request is a word with numbers behind it (`freeze`, `export`, `thaw`, `migrate RATE LIFT`,
 * `migrate-stop`, `heat SPACE AT`, `pools`); the answer is `ok` or an error text, with `export` beside it a memfd that holds
 * the page maps (laid out as struct export_head and its followers), to `heat` a struct heat_piece, to `pools` a struct
 * control_pools. A few connections at a time; when the one that froze the tree ends, it is thawed. */
#include "pager/control.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/log.h"
#include "pager/source_pool.h"
#include "pager/source_spread.h"
#include "pager/tree.h"

#define DAMAGED_NS 1000000000u /* for pages that were damaged, and may have been repaired, to come */
#define EXPORT_NS 5000000000u /* for the source to acknowledge what was changed before the freeze */

struct export_head {
	uint64_t count;
	struct control_pools from;
};
/* Followed by remote_count struct page_range and copy_count struct control_copy. */
struct export_space {
	int64_t vpid;
	uint64_t pool_space, remote_count, copy_count;
};

/* ---- the pager's end ---- */

static int own_pid(pid_t pid)
{
	char path[64];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	if (io_read_file(path, &text, 65536) < 0)
		return -ESRCH;
	const char *line = strstr(text, "\nNSpid:");
	int innermost = -ESRCH, used;
	for (line = line ? line + 7 : NULL; line && sscanf(line, " %d%n", &innermost, &used) == 1 && line[used] == '\t';)
		line += used;
	return innermost;
}

struct exporting {
	FILE *file;
	struct space *space;
	uint64_t copies;
	bool write;
};

static void export_copy(void *context, uint32_t page, uint64_t pgno)
{
	struct exporting *exporting = context;
	struct table *table = &exporting->space->table;
	uint8_t now = *table_page(table, page);
	if ((now & PAGE_STATE_MASK) != PAGE_LOCAL || !(now & PAGE_HAS_COPY))
		return;
	exporting->copies++;
	if (exporting->write)
		fwrite(&(struct control_copy){ pgno, *table_hash(table, page) }, sizeof(struct control_copy), 1, exporting->file);
}

/* Runs of pages in a state. */
static uint64_t export_runs(FILE *file, const struct table *table, enum page_state state, bool write)
{
	uint64_t runs = 0;
	if (!table->counts[state])
		return 0;
	for (uint64_t at = 0, pages; (pages = table_next_run(table, state, &at, UINT64_MAX, UINT64_MAX)); at += pages) {
		runs++;
		if (write)
			fwrite(&(struct page_range){ at, pages }, sizeof(struct page_range), 1, file);
	}
	return runs;
}

static void export_one(FILE *file, struct space *space)
{
	struct table *table = &space->table;
	struct export_space head = { .vpid = own_pid(space->pid), .pool_space = space->source_space };
	/* Pages on their way in are the pool's too. */
	for (int pass = 0; pass < 2; pass++) {
		uint64_t runs = export_runs(file, table, PAGE_REMOTE, pass == 1);
		runs += export_runs(file, table, PAGE_IN_FLIGHT, pass == 1);
		runs += export_runs(file, table, PAGE_DAMAGED, pass == 1); /* the pool knows that they are */
		head.remote_count += pass == 0 ? runs : 0;
		if (pass)
			break;
		struct exporting count = { file, space, 0, false };
		table_each(table, 0, UINT64_MAX >> PAGE_SHIFT, export_copy, &count);
		head.copy_count = count.copies;
		fwrite(&head, sizeof(head), 1, file);
	}
	struct exporting out = { file, space, 0, true };
	table_each(table, 0, UINT64_MAX >> PAGE_SHIFT, export_copy, &out);
}

static void describe_pools(const struct tree *tree, struct control_pools *from)
{
	const struct pager_config *config = tree->config;
	uint64_t instances[CONTROL_POOLS], epochs[CONTROL_POOLS];
	bool there[CONTROL_POOLS] = { true, true, true, true }, whole[CONTROL_POOLS] = { true, true, true, true };
	size_t count = source_pool_instance(config->source, &instances[0], &epochs[0]);
	if (!count)
		count = source_mirror_instances(config->source, instances, epochs, there, whole);
	if (!count)
		from->spread = (count = source_spread_instances(config->source, instances, epochs)) > 0;
	from->count = DP_MIN(count, config->pool_uri_count);
	for (size_t i = 0; i < from->count; i++) {
		from->pools[i] = (struct control_pool){ .instance = instances[i], .epoch = epochs[i], .there = there[i],
							.whole = whole[i] };
		snprintf(from->pools[i].uri, sizeof(from->pools[i].uri), "%s", config->pool_uris[i]);
	}
}

static int export_tree(struct tree *tree)
{
	cleanup_fd int fd = memfd_create("dp-export", MFD_CLOEXEC);
	int again = fd < 0 ? -1 : dup(fd);
	FILE *file = again < 0 ? NULL : fdopen(again, "w");
	if (!file) {
		dp_close_fd(&again);
		return -errno;
	}
	struct export_head head = { 0 };
	describe_pools(tree, &head.from);
	for (struct space *space = tree->spaces; space; space = space->next)
		head.count += !space->closed && space->pid > 0;
	fwrite(&head, sizeof(head), 1, file);
	for (struct space *space = tree->spaces; space; space = space->next) {
		if (space->closed || space->pid <= 0)
			continue;
		for (size_t i = 0; i < space->registered.count; i++)
			watch_reconcile(space, space->registered.ranges[i].start, space->registered.ranges[i].end, true);
		export_one(file, space);
	}
	int ret = ferror(file) ? -EIO : 0;
	if (fclose(file))
		ret = -errno;
	int out = fd;
	if (!ret)
		fd = -1;
	return ret ? ret : out;
}

static void send_answer(const struct control_peer *peer, const void *bytes, size_t count, int descriptor)
{
	const struct iovec data = { (void *)(uintptr_t)bytes, count };
	int ret = io_send_with_fd(peer->fd, &data, 1, descriptor, MSG_DONTWAIT);
	if (ret)
		log_warn("answer on the control socket: %s", strerror(-ret));
}

static void answer(const struct control_peer *peer, const char *text)
{
	send_answer(peer, text, strlen(text), -1);
}

void control_send(const struct control_peer *peer, const void *bytes, size_t count, int descriptor)
{
	send_answer(peer, bytes, count, descriptor);
}

void control_answer(const struct control_peer *peer, const char *text)
{
	answer(peer, text);
}

static void thaw(struct tree *tree)
{
	tree->frozen = tree->freezing = false;
	tree->export_owed_ns = 0;
	tree->freezer = -1;
}

void control_init(struct tree *tree)
{
	tree->freezer = -1;
	through_init(tree);
	for (unsigned i = 0; i < CONTROL_PEERS; i++)
		tree->control[i] = (struct control_peer){ .fd = -1, .handle.kind = HANDLE_CONTROL };
}

void control_done(struct tree *tree)
{
	for (unsigned i = 0; i < CONTROL_PEERS; i++)
		dp_close_fd(&tree->control[i].fd);
}

void control_accept(struct tree *tree)
{
	struct control_peer *peer = NULL, refused = { .fd = -1 };
	for (unsigned i = 0; i < CONTROL_PEERS && !peer; i++)
		if (tree->control[i].fd < 0)
			peer = &tree->control[i];
	int fd = accept4(tree->config->control_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0)
		return;
	if (!peer) {
		refused.fd = fd;
		answer(&refused, "too many callers at once; try again");
		close(fd);
		return;
	}
	peer->fd = fd;
	if (tree_watch_fd(tree, fd, &peer->handle)) {
		close(fd);
		peer->fd = -1;
	}
}

static void serve_freeze(struct tree *tree, struct control_peer *peer)
{
	int number = (int)(peer - tree->control);
	if (tree->freezer >= 0 && tree->freezer != number) {
		answer(peer, "another checkpoint is under way");
		return;
	}
	tree->freezer = number;
	tree->frozen = tree->freezing = true;
	tree->damaged_until_ns = damaged_marked(tree, true) ? clock_now_ns() + DAMAGED_NS : 0;
}

static void export_now(struct tree *tree, const struct control_peer *peer)
{
	int fd = export_tree(tree);
	const char *text = fd < 0 ? strerror(-fd) : "ok";
	send_answer(peer, text, strlen(text), fd);
	dp_close_fd(&fd);
}

/* A moved or forked range that the source does not know of yet would be inherited as it was: with the tree frozen there is an end
 * to changes, and it is waited for, but not for ever. */
static bool changes_answered(const struct tree *tree)
{
	return !tree->saved || tree->saved->oplog.head == tree->saved->oplog.tail;
}

static void serve_export(struct tree *tree, const struct control_peer *peer)
{
	if (tree->freezer != peer - tree->control || changes_answered(tree)) {
		export_now(tree, peer);
		return;
	}
	tree->export_owed_ns = clock_now_ns();
	tree->freezing = true;
}

static void export_owed(struct tree *tree)
{
	const struct control_peer *peer = &tree->control[tree->freezer];
	bool late = clock_now_ns() - tree->export_owed_ns > EXPORT_NS;
	if (!changes_answered(tree) && !late)
		return;
	tree->freezing = false;
	tree->export_owed_ns = 0;
	if (changes_answered(tree))
		export_now(tree, peer);
	else
		answer(peer, "the pool does not acknowledge changes");
}

/* One piece: its arrays are bounded, so a fault waits for some ten microseconds at most. */
static void serve_heat(struct tree *tree, const struct control_peer *peer, uint64_t space, uint64_t at)
{
	struct heat_piece piece;
	heat_export(tree, space, at, &piece);
	send_answer(peer, &piece, offsetof(struct heat_piece, leaf) + piece.count * sizeof(piece.leaf[0]), -1);
}

static void serve_pools(const struct tree *tree, const struct control_peer *peer)
{
	struct control_pools pools = { 0 };
	describe_pools(tree, &pools);
	send_answer(peer, &pools, sizeof(pools), -1);
}

static void serve_request(struct tree *tree, struct control_peer *peer, const char *request)
{
	uint64_t first, second;
	if (!strcmp(request, "freeze")) {
		serve_freeze(tree, peer);
	} else if (!strcmp(request, "export")) {
		serve_export(tree, peer);
	} else if (!strcmp(request, "thaw")) {
		/* Also said by a caller whose freeze was refused: the checkpoint of another is none of its business. */
		if (tree->freezer == peer - tree->control)
			thaw(tree);
		answer(peer, "ok");
	} else if (sscanf(request, "migrate %lu %lu", &first, &second) == 2) {
		if (second)
			migrate_lift_budget(tree);
		migrate_start(tree, first);
		answer(peer, "ok");
	} else if (!strcmp(request, "migrate-stop")) {
		migrate_stop(tree);
		answer(peer, "ok");
	} else if (sscanf(request, "heat %lu %lu", &first, &second) == 2) {
		serve_heat(tree, peer, first, second);
	} else if (!strcmp(request, "pools")) {
		serve_pools(tree, peer);
	} else if (!propagate_serve(tree, peer, request) && !through_serve(tree, peer, request)) {
		answer(peer, "unknown request");
	}
}

void control_serve(struct tree *tree, const struct handle *handle)
{
	struct control_peer *peer = (struct control_peer *)((char *)handle - offsetof(struct control_peer, handle));
	char request[80];
	ssize_t got = recv(peer->fd, request, sizeof(request) - 1, MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0) {
		if (tree->freezer == peer - tree->control)
			thaw(tree);
		propagate_peer_gone(tree, peer);
		through_peer_gone(tree, peer);
		close(peer->fd);
		peer->fd = -1;
		return;
	}
	request[got] = 0;
	serve_request(tree, peer, request);
}

static void refuse_damaged(struct tree *tree, uint64_t pages)
{
	char text[240];
	const struct control_peer *peer = &tree->control[tree->freezer];
	snprintf(text, sizeof(text),
		 "%lu page%s damaged in the pool, gave the process bus errors, and cannot be stored: repair the pool "
		 "(distri-proc pool scrub --repair-from), then try again",
		 pages, pages == 1 ? " is" : "s are");
	thaw(tree);
	answer(peer, text);
}

void control_work(struct tree *tree)
{
	bool ready = !tree->propagation.under_way && !through_is_busy(tree, NULL);
	if (!tree->running)
		return;
	if (tree->export_owed_ns) {
		export_owed(tree);
		return;
	}
	for (struct space *space = tree->spaces; space; space = space->next)
		if (!space->closed)
			ready &= evict_drain(space);
	if (!ready || (tree->damaged_until_ns && tree->in_flight && clock_now_ns() < tree->damaged_until_ns))
		return;
	uint64_t damaged = tree->damaged_until_ns ? damaged_marked(tree, false) : 0;
	if (damaged) {
		refuse_damaged(tree, damaged);
		return;
	}
	tree->freezing = false;
	answer(&tree->control[tree->freezer], "ok");
}

void control_refuse(struct tree *tree, const char *why)
{
	int freezer = tree->freezer;
	if (freezer < 0 || !tree->freezing)
		return;
	thaw(tree);
	answer(&tree->control[freezer], why);
}

/* ---- the caller's end ---- */

int control_connect(const char *path, struct dp_err *err)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(address.sun_path))
		return dp_fail(err, ENAMETOOLONG, "path of the control socket is too long: %s", path);
	strcpy(address.sun_path, path);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return dp_fail_errno(err, errno, "make a socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		int failure = errno;
		close(fd);
		return dp_fail_errno(err, failure, "connect to the pager at %s", path);
	}
	return fd;
}

int control_say(int connection, const char *request, const char *what, struct dp_err *err)
{
	return send(connection, request, strlen(request), MSG_NOSIGNAL) < 0 ? dp_fail_errno(err, errno, "%s", what) : 0;
}

ssize_t control_hear(int connection, void *answer, size_t room, struct dp_err *err)
{
	ssize_t got;
	while ((got = recv(connection, answer, room, 0)) < 0 && errno == EINTR)
		;
	return got > 0 ? got : dp_fail_errno(err, got < 0 ? errno : EPIPE, "the pager did not answer");
}

static int ask(int connection, const char *request, int *descriptor, struct dp_err *err)
{
	char text[256];
	struct iovec data = { text, sizeof(text) - 1 };
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };
	if (send(connection, request, strlen(request), MSG_NOSIGNAL) < 0)
		return dp_fail_errno(err, errno, "ask the pager to %s", request);
	ssize_t got;
	while ((got = recvmsg(connection, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
		;
	if (got <= 0)
		return dp_fail_errno(err, got < 0 ? errno : EPIPE, "the pager did not answer to %s", request);
	text[got] = 0;
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	if (descriptor && header && header->cmsg_type == SCM_RIGHTS)
		memcpy(descriptor, CMSG_DATA(header), sizeof(int));
	return strcmp(text, "ok") ? dp_fail(err, EIO, "the pager refused to %s: %s", request, text) : 0;
}

int control_ask(int connection, const char *request, int *descriptor, struct dp_err *err)
{
	return ask(connection, request, descriptor, err);
}

int control_freeze(int connection, struct dp_err *err)
{
	return ask(connection, "freeze", NULL, err);
}

int control_thaw(int connection, struct dp_err *err)
{
	return ask(connection, "thaw", NULL, err);
}

int control_migrate(int connection, uint64_t rate_bytes, bool lift_budget, struct dp_err *err)
{
	char request[64];
	snprintf(request, sizeof(request), "migrate %lu %d", rate_bytes, lift_budget);
	return ask(connection, request, NULL, err);
}

int control_migrate_stop(int connection, struct dp_err *err)
{
	return ask(connection, "migrate-stop", NULL, err);
}

int control_heat(int connection, uint64_t space, uint64_t at, struct heat_piece *piece, struct dp_err *err)
{
	char request[64];
	snprintf(request, sizeof(request), "heat %lu %lu", space, at);
	int ret = control_say(connection, request, "ask the pager for heat", err);
	ssize_t got = ret ? ret : control_hear(connection, piece, sizeof(*piece), err);
	if (got < 0)
		return (int)got;
	size_t head = offsetof(struct heat_piece, leaf);
	if ((size_t)got < head || piece->count > HEAT_PIECE_LEAVES || (size_t)got != head + piece->count * sizeof(piece->leaf[0]))
		return dp_fail(err, EPROTO, "the pager is of another version of distri-proc");
	return 0;
}

static bool good_pools(const struct control_pools *pools)
{
	bool good = pools->count <= CONTROL_POOLS;
	for (size_t i = 0; good && i < pools->count; i++)
		good = memchr(pools->pools[i].uri, 0, sizeof(pools->pools[i].uri));
	return good;
}

int control_pools(int connection, struct control_pools *pools, struct dp_err *err)
{
	int ret = control_say(connection, "pools", "ask the pager for its pools", err);
	ssize_t got = ret ? ret : control_hear(connection, pools, sizeof(*pools), err);
	if (got < 0)
		return (int)got;
	if (got != sizeof(*pools) || !good_pools(pools))
		return dp_fail(err, EPROTO, "the pager is of another version of distri-proc");
	return 0;
}

static int by_range(const void *first, const void *second)
{
	uint64_t a = ((const struct page_range *)first)->pgno, b = ((const struct page_range *)second)->pgno;
	return a < b ? -1 : a > b;
}

/* *left is what the file still holds: no count can be beyond it. */
static int read_array(int fd, void **array, uint64_t count, size_t element, uint64_t *left)
{
	if (count > *left / element)
		return -EBADMSG;
	*left -= count * element;
	*array = calloc(count ? count : 1, element);
	return *array ? io_read_full(fd, *array, count * element) : -ENOMEM;
}

static int check_ranges(const struct page_range *ranges, size_t count)
{
	uint64_t end = 0;
	for (size_t i = 0; i < count; i++) {
		if (ranges[i].pgno < end || !ranges[i].pages || ranges[i].pages > PGNO_END ||
		    ranges[i].pgno > PGNO_END - ranges[i].pages)
			return -EBADMSG;
		end = ranges[i].pgno + ranges[i].pages;
	}
	return 0;
}

static int read_space(int fd, struct control_space *space, uint64_t *left)
{
	struct export_space from;
	if (*left < sizeof(from))
		return -EBADMSG;
	*left -= sizeof(from);
	int ret = io_read_full(fd, &from, sizeof(from));
	if (ret)
		return ret;
	space->vpid = (int)from.vpid;
	space->pool_space = from.pool_space;
	ret = read_array(fd, (void **)&space->remote, from.remote_count, sizeof(*space->remote), left);
	if (!ret)
		ret = read_array(fd, (void **)&space->copies, from.copy_count, sizeof(*space->copies), left);
	if (ret)
		return ret;
	space->remote_count = from.remote_count;
	space->copy_count = from.copy_count;
	qsort(space->remote, space->remote_count, sizeof(*space->remote), by_range);
	return check_ranges(space->remote, space->remote_count);
}

static int read_export(int fd, struct control_export *out)
{
	struct export_head head;
	struct stat status;
	if (lseek(fd, 0, SEEK_SET) < 0 || fstat(fd, &status))
		return -errno;
	int ret = io_read_full(fd, &head, sizeof(head));
	if (ret)
		return ret;
	uint64_t left = (uint64_t)status.st_size - sizeof(head);
	if (head.count > left / sizeof(struct export_space) || !good_pools(&head.from))
		return -EBADMSG;
	memcpy(out->pools, head.from.pools, sizeof(out->pools));
	out->pool_count = head.from.count;
	out->spread = head.from.spread;
	out->spaces = calloc(head.count ? head.count : 1, sizeof(*out->spaces));
	if (!out->spaces)
		return -ENOMEM;
	while (!ret && out->count < head.count)
		ret = read_space(fd, &out->spaces[out->count++], &left);
	return ret;
}

int control_export(int connection, struct control_export *out, struct dp_err *err)
{
	cleanup_fd int fd = -1;
	memset(out, 0, sizeof(*out));
	int ret = ask(connection, "export", &fd, err);
	if (ret)
		return ret;
	ret = fd < 0 ? -EPROTO : read_export(fd, out);
	if (ret) {
		control_export_done(out);
		return dp_fail_errno(err, -ret, "read the pager's page maps");
	}
	return 0;
}

void control_export_done(struct control_export *out)
{
	for (size_t i = 0; out->spaces && i < out->count; i++) {
		free(out->spaces[i].remote);
		free(out->spaces[i].copies);
	}
	free(out->spaces);
	memset(out, 0, sizeof(*out));
}
