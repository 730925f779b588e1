/* The small texts that we keep ourselves and read again: state.json, notes of commits, what a snapshot's meta says of a
 * commit. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "checkpoint/commit.h"
#include "instance/commits.h"
#include "instance/instance.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_instance(const char *text)
{
	struct instance instance, again;
	struct dp_err err = { "" };

	if (instance_decode(&instance, text, &err) < 0) {
		assert(err.text[0]);
		return;
	}
	assert(instance.root.pid >= 0 && instance.init.pid >= 0 && instance.pager.pid >= 0 && instance.supervisor.pid >= 0);
	cleanup_free char *written = instance_encode(&instance);

	/* What was taken can be written and taken again. */
	assert(written && instance_decode(&again, written, &err) == 0);
	assert(strcmp(again.id, instance.id) == 0 && strcmp(again.pool, instance.pool) == 0 &&
	       again.root.pid == instance.root.pid);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	cleanup_free char *text = strndup((const char *)data, size);
	struct commit_note note;
	struct commit_state state;

	check_instance(text);
	if (commits_decode(text, &note) == 0)
		assert(memchr(note.snapshot, 0, sizeof(note.snapshot)) && memchr(note.error, 0, sizeof(note.error)));
	if (commit_read_meta(text, &state)) {
		commit_fits(&state, text, false);
		commit_fits(&state, state.series, true);
	}
	return 0;
}
