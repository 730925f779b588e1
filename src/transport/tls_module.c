/* The module behind tls.h: streams of TLS 1.3 by OpenSSL.
 *
 * What is sent is gathered into records of up to 16 KiB. A record that the socket does not take whole has been sealed all the
 * same and must go out as it is, so the stream keeps it and counts it as taken ("held"): the caller may then put other bytes in
 * front of what it has not handed over yet. What is read comes out of OpenSSL's buffer until that is empty; a caller whose buffer
 * was too small is told by stream_pending.
 * There are no tickets, no resumption, no early data, no renegotiation: each connection proves anew who it is. */
#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "transport/tls.h"

#define RECORD_BYTES 16384u
#define READ_BUFFER_BYTES (80u << 10) /* a few records a system call */
#define CIPHERS "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
#define WHY_BYTES 256

struct context {
	SSL_CTX *ssl;
	BIO_METHOD *bio;
	struct psk *keys;
	size_t key_count;
	bool has_certificate;
};

struct tls_stream {
	struct stream stream;
	const struct context *context;
	SSL *ssl;
	bool server;
	bool blocked;         /* a handshake's message waits for the socket */
	bool more;            /* the last read left bytes in OpenSSL's buffer */
	int error;            /* sticky */
	size_t held;          /* bytes of `record` that are sealed but not sent */
	size_t fill;
	char psk[PSK_IDENTITY_LIMIT + 1]; /* the key that was asked for; counts only if the handshake used it */
	char why[WHY_BYTES];
	uint8_t record[RECORD_BYTES];
};

static struct tls_stream *of(const struct stream *stream)
{
	return (struct tls_stream *)stream;
}

/* ---- the socket, without SIGPIPE ---- */

static int bio_write(BIO *bio, const char *bytes, size_t length, size_t *written)
{
	ssize_t sent = send((int)(intptr_t)BIO_get_data(bio), bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL);

	BIO_clear_retry_flags(bio);
	*written = sent > 0 ? (size_t)sent : 0;
	if (sent < 0 && (errno == EAGAIN || errno == EINTR))
		BIO_set_retry_write(bio);
	return sent > 0;
}

static int bio_read(BIO *bio, char *bytes, size_t length, size_t *got)
{
	ssize_t received = recv((int)(intptr_t)BIO_get_data(bio), bytes, length, MSG_DONTWAIT);

	BIO_clear_retry_flags(bio);
	*got = received > 0 ? (size_t)received : 0;
	if (received < 0 && (errno == EAGAIN || errno == EINTR))
		BIO_set_retry_read(bio);
	if (received == 0)
		BIO_set_flags(bio, BIO_FLAGS_IN_EOF);
	return received > 0;
}

static long bio_control(BIO *bio, int command, long number, void *pointer)
{
	if (command == BIO_CTRL_EOF)
		return BIO_test_flags(bio, BIO_FLAGS_IN_EOF) != 0;
	return command == BIO_CTRL_FLUSH || command == BIO_CTRL_DUP;
}

static BIO_METHOD *bio_method(void)
{
	BIO_METHOD *method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "distri-proc socket");

	if (method && BIO_meth_set_write_ex(method, bio_write) && BIO_meth_set_read_ex(method, bio_read) &&
	    BIO_meth_set_ctrl(method, bio_control))
		return method;
	BIO_meth_free(method);
	return NULL;
}

/* ---- errors ---- */

/* An alert is the peer's word: it did not like us. Everything else is our verdict about it. */
static void explain(struct tls_stream *tls)
{
	unsigned long code = ERR_peek_last_error();
	long verdict = SSL_get_verify_result(tls->ssl);
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	if (tls->why[0])
		return;
	int number = code && ERR_GET_LIB(code) == ERR_LIB_SSL ? ERR_GET_REASON(code) : 0;

	if (tls->psk[0] &&
	    number == (tls->server ? SSL_R_BINDER_DOES_NOT_VERIFY : SSL_AD_REASON_OFFSET + SSL_AD_ILLEGAL_PARAMETER))
		snprintf(tls->why, sizeof(tls->why), "the pre-shared keys of %s differ", tls->psk);
	else if (verdict != X509_V_OK && !SSL_session_reused(tls->ssl))
		snprintf(tls->why, sizeof(tls->why), "its certificate is refused: %s", X509_verify_cert_error_string(verdict));
	else if (number > SSL_AD_REASON_OFFSET)
		snprintf(tls->why, sizeof(tls->why), "it refused us: %s", reason ? reason : "no reason given");
	else if (number == SSL_R_WRONG_VERSION_NUMBER || number == SSL_R_HTTP_REQUEST)
		snprintf(tls->why, sizeof(tls->why), "it does not speak TLS");
	else
		snprintf(tls->why, sizeof(tls->why), "TLS: %s", reason ? reason : "the handshake failed");
}

/* Sets the sticky error after a call of OpenSSL that failed. 0: the stream has ended. */
static int fail(struct tls_stream *tls, int result, int system_error)
{
	int what = SSL_get_error(tls->ssl, result);

	if (what == SSL_ERROR_ZERO_RETURN)
		return 0;
	if (what == SSL_ERROR_SYSCALL && ERR_peek_error() == 0) {
		tls->error = system_error ? -system_error : -ECONNRESET;
	} else {
		bool spoken = SSL_is_init_finished(tls->ssl) && ERR_GET_REASON(ERR_peek_last_error()) < SSL_AD_REASON_OFFSET;

		explain(tls);
		tls->error = spoken ? -EPROTO : -EKEYREJECTED;
	}
	ERR_clear_error();
	return tls->error;
}

/* To send after the end is an error. */
static int ended(int result)
{
	return result ? result : -EPIPE;
}

/* Notes what the socket must be ready for before a call of OpenSSL can go on. */
static bool waits(struct tls_stream *tls, int result)
{
	int what = SSL_get_error(tls->ssl, result);

	tls->blocked = what == SSL_ERROR_WANT_WRITE;
	return what == SSL_ERROR_WANT_WRITE || what == SSL_ERROR_WANT_READ;
}

/* ---- the stream ---- */

static int tls_flush(struct stream *stream)
{
	struct tls_stream *tls = of(stream);
	size_t written;

	if (tls->error)
		return tls->error;
	if (tls->blocked && !tls->held) {
		errno = 0;
		int result = SSL_do_handshake(tls->ssl);

		if (result == 1)
			tls->blocked = false;
		else if (!waits(tls, result))
			return fail(tls, result, errno);
		return tls->blocked ? -EAGAIN : 0;
	}
	if (!tls->held)
		return 0;
	errno = 0;
	int result = SSL_write_ex(tls->ssl, tls->record, tls->held, &written);

	if (result == 1) {
		tls->held = 0;
		tls->blocked = false;
		return 0;
	}
	return waits(tls, result) ? -EAGAIN : ended(fail(tls, result, errno));
}

/* The next record out of the pieces: from byte *at of piece *index on. */
static void gather(struct tls_stream *tls, const struct iovec *iov, int count, int *index, size_t *at)
{
	tls->fill = 0;
	while (*index < count && tls->fill < RECORD_BYTES) {
		size_t left = iov[*index].iov_len - *at, room = RECORD_BYTES - tls->fill, part = left < room ? left : room;

		if (part)
			memcpy(tls->record + tls->fill, (const uint8_t *)iov[*index].iov_base + *at, part);
		tls->fill += part;
		*at += part;
		if (*at == iov[*index].iov_len) {
			(*index)++;
			*at = 0;
		}
	}
}

static ssize_t tls_sendv(struct stream *stream, const struct iovec *iov, int count)
{
	struct tls_stream *tls = of(stream);
	size_t at = 0, taken = 0, written;
	int index = 0, result = tls_flush(stream);

	if (result < 0)
		return result;
	for (;;) {
		gather(tls, iov, count, &index, &at);
		if (!tls->fill)
			return (ssize_t)taken;
		errno = 0;
		result = SSL_write_ex(tls->ssl, tls->record, tls->fill, &written);
		taken += tls->fill;
		if (result == 1)
			continue;
		if (waits(tls, result)) {
			tls->held = tls->fill;
			return (ssize_t)taken;
		}
		return ended(fail(tls, result, errno));
	}
}

static ssize_t tls_receive(struct stream *stream, void *buffer, size_t bytes)
{
	struct tls_stream *tls = of(stream);
	size_t got = 0, part;

	if (tls->error)
		return tls->error;
	tls->more = false;
	do {
		errno = 0;
		int result = SSL_read_ex(tls->ssl, (uint8_t *)buffer + got, bytes - got, &part);

		if (result != 1) {
			if (waits(tls, result))
				return got ? (ssize_t)got : -EAGAIN;
			/* What has come before the end is handed over first; the end comes again. */
			int failed = fail(tls, result, errno);

			return got ? (ssize_t)got : failed;
		}
		got += part;
	} while (got < bytes && SSL_has_pending(tls->ssl));
	tls->more = got == bytes && SSL_has_pending(tls->ssl);
	return (ssize_t)got;
}

static bool tls_holds(const struct stream *stream)
{
	return of(stream)->held || of(stream)->blocked;
}

static bool tls_pending(const struct stream *stream)
{
	return of(stream)->more;
}

static const char *tls_why(const struct stream *stream)
{
	return of(stream)->why;
}

static void tls_close(struct stream *stream)
{
	struct tls_stream *tls = of(stream);

	if (!tls->error && !tls->held && SSL_is_init_finished(tls->ssl))
		SSL_shutdown(tls->ssl); /* says that this is the end; does not wait for the other side's word */
	ERR_clear_error();
	SSL_free(tls->ssl);
	close(stream->fd);
	OPENSSL_cleanse(tls->record, sizeof(tls->record));
	free(tls);
}

/* The certificate's common name, if it is one that can be written into a file of rights and into a log. */
static bool common_name(SSL *ssl, char *name, size_t size)
{
	X509 *certificate = SSL_get0_peer_certificate(ssl);
	X509_NAME *subject = certificate ? X509_get_subject_name(certificate) : NULL;
	int length = subject ? X509_NAME_get_text_by_NID(subject, NID_commonName, name, (int)size) : -1;

	if (length <= 0 || (size_t)length >= size - 1 || strlen(name) != (size_t)length)
		return false;
	for (const char *at = name; *at; at++)
		if (*at <= ' ' || *at > '~' || strchr("*?[]\\#\"'", *at))
			return false;
	return true;
}

static void tls_identity(const struct stream *stream, char *identity, size_t size)
{
	struct tls_stream *tls = of(stream);
	char name[128];

	if (!SSL_is_init_finished(tls->ssl))
		snprintf(identity, size, "unknown");
	else if (SSL_session_reused(tls->ssl)) /* there is no resumption: so it is the pre-shared key */
		snprintf(identity, size, "psk:%s", tls->psk);
	else if (common_name(tls->ssl, name, sizeof(name)))
		snprintf(identity, size, "cn:%s", name);
	else
		snprintf(identity, size, "cn:");
}

static const struct stream_ops tls_ops = {
	.sendv = tls_sendv,
	.receive = tls_receive,
	.close = tls_close,
	.flush = tls_flush,
	.holds = tls_holds,
	.pending = tls_pending,
	.identity = tls_identity,
	.why = tls_why,
};

/* ---- pre-shared keys ---- */

static SSL_SESSION *session_of(SSL *ssl, const struct psk *psk)
{
	static const uint8_t cipher_id[] = { 0x13, 0x01 }; /* TLS_AES_128_GCM_SHA256: says which hash the key is for */
	const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, cipher_id);
	SSL_SESSION *session = SSL_SESSION_new();

	if (session && cipher && SSL_SESSION_set1_master_key(session, psk->key, psk->key_bytes) &&
	    SSL_SESSION_set_cipher(session, cipher) && SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
		return session;
	SSL_SESSION_free(session);
	return NULL;
}

static int find_key(SSL *ssl, const unsigned char *identity, size_t length, SSL_SESSION **session)
{
	struct tls_stream *tls = SSL_get_app_data(ssl);
	const struct context *context = tls->context;

	*session = NULL;
	for (size_t i = 0; i < context->key_count; i++) {
		const struct psk *psk = &context->keys[i];

		if (strlen(psk->identity) != length || memcmp(psk->identity, identity, length) != 0)
			continue;
		snprintf(tls->psk, sizeof(tls->psk), "%s", psk->identity);
		*session = session_of(ssl, psk);
		return *session != NULL;
	}
	if (!context->has_certificate && context->key_count)
		snprintf(tls->why, sizeof(tls->why), "its pre-shared key's identity is not in our file");
	return 1; /* no such key: the handshake goes on with certificates, if there are any */
}

static int use_key(SSL *ssl, const EVP_MD *digest, const unsigned char **identity, size_t *length, SSL_SESSION **session)
{
	struct tls_stream *tls = SSL_get_app_data(ssl);
	const struct psk *psk = &tls->context->keys[0];

	*session = session_of(ssl, psk);
	if (!*session)
		return 0;
	if (digest && SSL_CIPHER_get_handshake_digest(SSL_SESSION_get0_cipher(*session)) != digest) {
		SSL_SESSION_free(*session); /* the server chose another hash: no key for it */
		*session = NULL;
		return 1;
	}
	snprintf(tls->psk, sizeof(tls->psk), "%s", psk->identity);
	*identity = (const unsigned char *)psk->identity;
	*length = strlen(psk->identity);
	return 1;
}

/* ---- contexts ---- */

static int complain(struct dp_err *err, int code, const char *what, const char *path)
{
	unsigned long first = ERR_get_error();
	const char *reason = first ? ERR_reason_error_string(first) : NULL;

	ERR_clear_error();
	return dp_fail(err, code, "%s %s: %s", what, path, reason ? reason : "OpenSSL refuses it");
}

static int check_readable(const char *what, const char *path, struct dp_err *err)
{
	FILE *file = fopen(path, "re");

	if (!file)
		return dp_fail_errno(err, errno, "read %s %s", what, path);
	fclose(file);
	return 0;
}

static int load_certificates(struct context *context, const struct tls_settings *settings, struct dp_err *err)
{
	int result;

	if (!settings->cert != !settings->key || !settings->cert != !settings->ca)
		return dp_fail(err, EINVAL, "TLS needs --tls-cert, --tls-key and --tls-ca together (or --psk-file instead)");
	if (!settings->cert)
		return 0;
	if ((result = check_readable("certificate", settings->cert, err)) < 0 ||
	    (result = check_readable("key", settings->key, err)) < 0 ||
	    (result = check_readable("authority", settings->ca, err)) < 0)
		return result;
	if (SSL_CTX_use_certificate_chain_file(context->ssl, settings->cert) != 1)
		return complain(err, EINVAL, "certificate", settings->cert);
	if (SSL_CTX_use_PrivateKey_file(context->ssl, settings->key, SSL_FILETYPE_PEM) != 1 ||
	    SSL_CTX_check_private_key(context->ssl) != 1)
		return complain(err, EINVAL, "key", settings->key);
	if (SSL_CTX_load_verify_file(context->ssl, settings->ca) != 1)
		return complain(err, EINVAL, "authority", settings->ca);
	context->has_certificate = true;
	return 0;
}

static int take_keys(struct context *context, const struct psk_list *keys, bool server, struct dp_err *err)
{
	if (!keys->count)
		return 0;
	context->keys = calloc(keys->count, sizeof(*context->keys));
	if (!context->keys)
		return dp_fail_errno(err, ENOMEM, "TLS");
	memcpy(context->keys, keys->keys, keys->count * sizeof(*context->keys));
	context->key_count = keys->count;
	/* A server is asked for a name of its sessions, though nothing is resumed but keys of our own. */
	if (server && !SSL_CTX_set_session_id_context(context->ssl, (const unsigned char *)"distri-proc", 11))
		return complain(err, EIO, "TLS", "1.3");
	if (server)
		SSL_CTX_set_psk_find_session_callback(context->ssl, find_key);
	else
		SSL_CTX_set_psk_use_session_callback(context->ssl, use_key);
	return 0;
}

static void context_free(void *opaque)
{
	struct context *context = opaque;

	if (!context)
		return;
	SSL_CTX_free(context->ssl);
	BIO_meth_free(context->bio);
	if (context->keys)
		OPENSSL_cleanse(context->keys, context->key_count * sizeof(*context->keys));
	free(context->keys);
	free(context);
}

static int set_up(struct context *context, struct dp_err *err)
{
	context->ssl = SSL_CTX_new(TLS_method());
	context->bio = bio_method();
	if (!context->ssl || !context->bio || !SSL_CTX_set_min_proto_version(context->ssl, TLS1_3_VERSION) ||
	    !SSL_CTX_set_ciphersuites(context->ssl, CIPHERS))
		return complain(err, EIO, "TLS", "1.3");
	SSL_CTX_set_options(context->ssl, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE | SSL_OP_NO_RENEGOTIATION |
						  SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_NO_COMPRESSION);
	SSL_CTX_set_num_tickets(context->ssl, 0);
	SSL_CTX_set_session_cache_mode(context->ssl, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(context->ssl, SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_read_ahead(context->ssl, 1);
	SSL_CTX_set_default_read_buffer_len(context->ssl, READ_BUFFER_BYTES);
	SSL_CTX_set_verify(context->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_CTX_set_verify_depth(context->ssl, 4);
	SSL_CTX_set_max_cert_list(context->ssl, 64 << 10);
	return 0;
}

static int context_new(void **result, const struct tls_settings *settings, const struct psk_list *keys, bool server,
		       struct dp_err *err)
{
	struct context *context = calloc(1, sizeof(*context));

	if (!context)
		return dp_fail_errno(err, ENOMEM, "TLS");
	int code = set_up(context, err);

	if (code == 0)
		code = load_certificates(context, settings, err);
	if (code == 0)
		code = take_keys(context, keys, server, err);
	if (code == 0 && !context->has_certificate && !context->key_count)
		code = dp_fail(
			err, EINVAL,
			"dps:// needs --psk-file FILE, or --tls-cert, --tls-key and --tls-ca (or their environment variables); "
			"see distri-proc(1)");
	if (code < 0) {
		context_free(context);
		return code;
	}
	*result = context;
	return 0;
}

/* The name or address that the server's certificate must have. */
static bool expect_host(SSL *ssl, const char *host)
{
	struct in6_addr address;
	X509_VERIFY_PARAM *parameters = SSL_get0_param(ssl);

	if (inet_pton(AF_INET, host, &address) == 1 || inet_pton(AF_INET6, host, &address) == 1)
		return X509_VERIFY_PARAM_set1_ip_asc(parameters, host) == 1;
	SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	return SSL_set1_host(ssl, host) == 1 && SSL_set_tlsext_host_name(ssl, host) == 1;
}

static struct stream *stream_new(void *opaque, int fd, bool server, const char *host)
{
	struct context *context = opaque;
	struct tls_stream *tls = calloc(1, sizeof(*tls));
	BIO *bio = BIO_new(context->bio);

	if (tls)
		tls->ssl = SSL_new(context->ssl);
	if (!tls || !bio || !tls->ssl || (!server && !expect_host(tls->ssl, host))) {
		BIO_free(bio);
		if (tls)
			SSL_free(tls->ssl);
		free(tls);
		close(fd);
		return NULL;
	}
	BIO_set_data(bio, (void *)(intptr_t)fd);
	BIO_set_init(bio, 1);
	SSL_set_bio(tls->ssl, bio, bio);
	SSL_set_app_data(tls->ssl, tls);
	tls->stream = (struct stream){ .ops = &tls_ops, .fd = fd };
	tls->context = context;
	tls->server = server;
	if (server)
		SSL_set_accept_state(tls->ssl);
	else
		SSL_set_connect_state(tls->ssl);
	return &tls->stream;
}

static int shake_hands(struct stream *stream, short *events)
{
	struct tls_stream *tls = of(stream);

	errno = 0;
	int result = SSL_do_handshake(tls->ssl);

	if (result == 1) {
		tls->blocked = false;
		/* A server that passes over our key must not do with any certificate: verification has failed then, as there is
		 * no authority to verify by. Said once more in our own words. */
		if (!tls->context->has_certificate && !SSL_session_reused(tls->ssl)) {
			snprintf(tls->why, sizeof(tls->why), "it does not know our pre-shared key");
			return tls->error = -EKEYREJECTED;
		}
		return 0;
	}
	if (waits(tls, result)) {
		*events = tls->blocked ? POLLOUT : POLLIN;
		return -EAGAIN;
	}
	result = fail(tls, result, errno);
	return result ? result : (tls->error = -ECONNRESET);
}

__attribute__((visibility("default"))) const struct tls_module dp_tls_module = {
	.context_new = context_new,
	.context_free = context_free,
	.stream_new = stream_new,
	.shake_hands = shake_hands,
};
