/* The files of rights and of keys against every text. What is taken is asked, with names out of the text itself. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "pool/access.h"
#include "transport/psk.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_rights(const char *text)
{
	struct access *access = NULL;
	struct dp_err err = { "" };

	if (access_parse(&access, text, &err) < 0) {
		assert(err.text[0]);
		return;
	}
	size_t length = strcspn(text, " \t\n");
	cleanup_free char *identity = strndup(text, length);
	const char *repository = text + length + (text[length] != 0);

	assert((access_rights(access, identity, repository) & ~RIGHTS_KNOWN) == 0);
	if (access_rights(access, identity, repository))
		assert(access_knows(access, identity));
	access_quota_bytes(access, identity);
	access_names_users(access, 0);
	access_free(access);
}

static void check_keys(const char *text)
{
	struct psk_list list;
	struct dp_err err = { "" };

	if (psk_parse(&list, text, &err) < 0) {
		assert(err.text[0] && list.count == 0);
		return;
	}
	for (size_t i = 0; i < list.count; i++) {
		assert(list.keys[i].key_bytes >= PSK_KEY_LEAST && list.keys[i].key_bytes <= PSK_KEY_LIMIT);
		assert(psk_identity_check(list.keys[i].identity, strlen(list.keys[i].identity)) == 0);
	}
	psk_list_done(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	cleanup_free char *text = strndup((const char *)data, size);

	check_rights(text);
	check_keys(text);
	return 0;
}
