/* What CRIU 4.2 calls of libnftables.so.1. Not to be guarded: it is included once. */
#define FORWARD_LIBRARY "libnftables.so.1"
#define FORWARD_EACH(NAME) \
	NAME(nft_ctx_buffer_error) \
	NAME(nft_ctx_buffer_output) \
	NAME(nft_ctx_free) \
	NAME(nft_ctx_get_error_buffer) \
	NAME(nft_ctx_new) \
	NAME(nft_ctx_set_error) \
	NAME(nft_ctx_set_output) \
	NAME(nft_run_cmd_from_buffer)
