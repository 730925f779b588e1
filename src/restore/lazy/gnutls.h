/* What CRIU 4.2 calls of libgnutls.so.30. Not to be guarded: it is included once. */
#define FORWARD_LIBRARY "libgnutls.so.30"
#define FORWARD_FREE gnutls_free
#define FORWARD_EACH(NAME) \
	NAME(gnutls_bye) \
	NAME(gnutls_certificate_allocate_credentials) \
	NAME(gnutls_certificate_free_credentials) \
	NAME(gnutls_certificate_send_x509_rdn_sequence) \
	NAME(gnutls_certificate_server_set_request) \
	NAME(gnutls_certificate_set_x509_crl_file) \
	NAME(gnutls_certificate_set_x509_key_file) \
	NAME(gnutls_certificate_set_x509_system_trust) \
	NAME(gnutls_certificate_set_x509_trust_file) \
	NAME(gnutls_certificate_type_get) \
	NAME(gnutls_certificate_verification_status_print) \
	NAME(gnutls_certificate_verify_peers3) \
	NAME(gnutls_credentials_set) \
	NAME(gnutls_deinit) \
	NAME(gnutls_error_is_fatal) \
	NAME(gnutls_handshake) \
	NAME(gnutls_init) \
	NAME(gnutls_packet_deinit) \
	NAME(gnutls_packet_get) \
	NAME(gnutls_record_check_pending) \
	NAME(gnutls_record_recv) \
	NAME(gnutls_record_recv_packet) \
	NAME(gnutls_record_send) \
	NAME(gnutls_set_default_priority) \
	NAME(gnutls_strerror) \
	NAME(gnutls_transport_set_ptr) \
	NAME(gnutls_transport_set_pull_function) \
	NAME(gnutls_transport_set_push_function)
