/* transport/tls: what dps:// needs: TLS 1.3 by OpenSSL, both sides proving who they are by certificates or a pre-shared key.
 *
 * How it works: settings come from the environment (the command line's --tls-cert and its like are put there by the program's
 * front door), so every command and every process that a command starts has the same ones. OpenSSL itself is in a module of its
 * own
 * (tls_module.c), loaded when the first dps:// is opened: linked, it would cost each start of the program four milliseconds.
 * A context (settings read, certificates loaded) is made once per process and side, and kept: a process that has given up its
 * rights to files can connect again.
 *
 *   DISTRI_PROC_TLS_CERT, _TLS_KEY   our certificate (PEM, with its chain) and its key
 *   DISTRI_PROC_TLS_CA               who signs the other side's certificate
 *   DISTRI_PROC_TLS_NAME             clients: the name in the pool's certificate, if not the host of the URI
 *   DISTRI_PROC_PSK_FILE             pre-shared keys (psk.h); a client uses the first
 *   DISTRI_PROC_ALLOW_PLAINTEXT      1: plain TCP beyond loopback is allowed
 * Thread rule: contexts are made by one thread, before others use them. */
#ifndef DP_TRANSPORT_TLS_H
#define DP_TRANSPORT_TLS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "transport/psk.h"
#include "transport/stream.h"

struct tls_settings {
	const char *cert, *key, *ca, *name, *psk_file; /* NULL: not given; borrowed */
	bool allow_plaintext;
};

void tls_settings_from_environment(struct tls_settings *settings);

/* What the module offers. Its texts are whole sentences' parts, for dp_err. */
struct tls_module {
	/* -EACCES, -ENOENT, -EINVAL, ... with a text that says which file. keys: read by the caller, copied; may be none. */
	int (*context_new)(void **context, const struct tls_settings *settings, const struct psk_list *keys, bool server,
			   struct dp_err *err);
	void (*context_free)(void *context);
	/* A stream over a connected, prepared socket, which it takes. server: shakes hands by and by, while it is read from.
	 * client: `host` is the name that the certificate must have. NULL where memory is out. */
	struct stream *(*stream_new)(void *context, int fd, bool server, const char *host);
	/* A client's handshake. 0, -EAGAIN (poll for *events), -EKEYREJECTED, -EPROTO, ...; stream_why tells more. */
	int (*shake_hands)(struct stream *stream, short *events);
};
extern const struct tls_module dp_tls_module; /* the module's one symbol */
#define TLS_MODULE_SYMBOL "dp_tls_module"

/* The module, loaded by now. -ENOPKG. */
int tls_load(const struct tls_module **module, struct dp_err *err);
/* A context of the settings in the environment, kept for the life of the process. */
int tls_context(const struct tls_module **module, void **context, bool server, struct dp_err *err);
/* A stream over a connected socket (taken); blocks until deadline_ns. */
int tls_connect(struct stream **stream, int fd, const char *host, const char *place, uint64_t deadline_ns, struct dp_err *err);

#endif
