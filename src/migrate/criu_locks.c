#include "migrate/criu_locks.h"

#include <ctype.h>
#include <stdbool.h>
#include <string.h>

#include "base/base.h"
#include "migrate/address.h"

#define INVENTORY_LIMIT_BYTES (1 << 20)
#define ID_BYTES 36 /* 8-4-4-4-12 */
#define KEPT_BYTES 21 /* of it: CRIU formats "inet CRIU-%s" into 32 bytes */

static bool is_id(const char *text)
{
	for (unsigned i = 0; i < ID_BYTES; i++) {
		bool dash = i == 8 || i == 13 || i == 18 || i == 23;
		if (dash ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
			return false;
	}
	return true;
}

void criu_locks_name(int images_fd, char name[static CRIU_LOCKS_BYTES])
{
	cleanup_free char *image = NULL;
	ssize_t length = io_read_file_at(images_fd, "inventory.img", &image, INVENTORY_LIMIT_BYTES);
	name[0] = 0;
	for (ssize_t i = 0; i + ID_BYTES <= length; i++)
		if (is_id(image + i)) {
			snprintf(name, CRIU_LOCKS_BYTES, "CRIU-%.*s", KEPT_BYTES, image + i);
			return;
		}
}

void criu_locks_drop(const char *name)
{
	if (name[0])
		address_drop_table(name);
}
