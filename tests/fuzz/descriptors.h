/* descriptors: numbers in place of descriptors, for what a fuzz target answers itself. None may be used or closed when it is not
 * open; descriptors_forget says that none was left open. Linked with --wrap=close. */
#ifndef DP_TESTS_FUZZ_DESCRIPTORS_H
#define DP_TESTS_FUZZ_DESCRIPTORS_H

#include <stdbool.h>

int descriptor_open(void);
/* Is it one of these numbers? */
bool descriptor_is(int fd);
void descriptor_check(int fd);
void descriptors_forget(void);

#endif
