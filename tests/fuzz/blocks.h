/* blocks: malloc and free of large blocks, for a fuzz target: what is freed is given to the next that asks for just as much.
 * Making them anew for each input would be nearly all that it does. Linked with --wrap for malloc, realloc, reallocarray and
 * free. */
#ifndef DP_TESTS_FUZZ_BLOCKS_H
#define DP_TESTS_FUZZ_BLOCKS_H

/* So many are in use: what a sanitizer would not see to be lost. */
unsigned blocks_used(void);

#endif
