/* How the address sanitizer runs under a fuzzer: what is freed is used again while it is still in the cache. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
	return "quarantine_size_mb=8:malloc_context_size=8";
}
