/* record: what the source of a migration has decided, in a file that outlives the ferry which decided it (switch.h, S4).
 *
 * One small JSON file in the migration's own directory (0700), replaced whole by rename. It is not synced: it has to outlive
 * processes, not the host (switch.h), and a wait for a disk would be part of the gap. With the boot's id in it, a record of
 * another boot is known as what it is.
 * While the tree is frozen CRIU waits for its post-dump hook, and the hook for the ferry. When the ferry dies, the hook is its
 * heir: switch_heir() reads the record and waits as long as the switch demands.
 * Thread rule: none, no state. */
#ifndef DP_MIGRATE_RECORD_H
#define DP_MIGRATE_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "migrate/switch.h"

struct switch_record {
	enum switch_state state; /* FROZEN: there is no record */
	uint64_t lease_ns, margin_ns;
	bool this_boot;
};

#define SWITCH_BOOT_BYTES 64
/* This boot's id. false: it cannot be read. */
bool switch_boot_id(char boot[static SWITCH_BOOT_BYTES]);

/* -errno: the decision must not be told then. */
int switch_record_write(const char *path, const struct switch_record *record, struct dp_err *err);
/* No file is FROZEN, and no error. -EBADMSG where it cannot be understood. */
int switch_record_read(const char *path, struct switch_record *record, struct dp_err *err);

/* For the process that still holds the frozen tree when the ferry is gone. Blocks until what the record demands is sure: true,
 * the tree is to be killed (RELEASED), false, it runs on; RESUMED was recorded before the return then. A record that cannot be
 * read is taken for the longest lease: late, but never two copies. */
bool switch_heir(const char *path);

#endif
