/* memory: mmap and munmap of a fuzz target, from the heap: quicker than the kernel's, and a sanitizer sees each byte beyond them.
 * Linked with --wrap for both. What is larger than MEMORY_HEAP_BYTES (tables in their real size) is the kernel's as ever.
 *
 * Shared mappings are all of one file, whatever the descriptor: it is there, zero, from the first of them until memory_forget. */
#ifndef DP_TESTS_FUZZ_MEMORY_H
#define DP_TESTS_FUZZ_MEMORY_H

#include <stddef.h>

#define MEMORY_HEAP_BYTES ((size_t)4 << 20)

/* The file of the shared mappings; NULL: there is none yet. */
void *memory_shared(void);
/* It is gone, for the next input. */
void memory_forget(void);

#endif
