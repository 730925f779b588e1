/* transport/psk: files of pre-shared keys: a line IDENTITY:HEXKEY each, '#' begins a comment line. IDENTITY is 1 to 64 of
 * [A-Za-z0-9._@-]; the key is 16 to 64 bytes. The file must be its owner's alone (0600) and the owner us or root, as with ssh's
 * keys.
 * Thread rule: none, no state. */
#ifndef DP_TRANSPORT_PSK_H
#define DP_TRANSPORT_PSK_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define PSK_IDENTITY_LIMIT 64
#define PSK_KEY_LIMIT 64
#define PSK_KEY_LEAST 16
#define PSK_COUNT_LIMIT 4096

struct psk {
	char identity[PSK_IDENTITY_LIMIT + 1];
	uint8_t key[PSK_KEY_LIMIT];
	size_t key_bytes;
};
struct psk_list {
	struct psk *keys;
	size_t count;
};

/* May this be an identity? */
int psk_identity_check(const char *identity, size_t length);
/* Pure: no I/O. -EINVAL with the line's number. list is empty on failure. */
int psk_parse(struct psk_list *list, const char *text, struct dp_err *err);
/* Checks the file's mode and owner too. -EACCES, -ENOENT, -EINVAL, ... */
int psk_read(struct psk_list *list, const char *path, struct dp_err *err);
/* Wipes the keys. */
void psk_list_done(struct psk_list *list);

#endif
