/* page_receiver: the receiving end of `criu dump --page-server`: what `criu page-server` is, without its files.
 *
 * The stream (criu/page-xfer.c of CRIU 4.2; native byte order): headers {u32 command, u32 pad, u64 pages, u64 address, u64 id}.
 * OPEN2 starts the page map of one task or of one shared memory segment (answered by one byte: no parent image); ADD_F brings
 * pages, with their PE_* flags in the command's upper half; CLOSE ends it all (answered by a 32-bit status). One page map is
 * open at a time, its pages ascend. Older forms of the stream (24-byte headers of CRIU 4.1) are told apart and refused.
 *
 * Everything received is checked before use. Thread rule: one receiver, one thread. Blocks in read(2). */
#ifndef DP_CHECKPOINT_PAGE_RECEIVER_H
#define DP_CHECKPOINT_PAGE_RECEIVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define PAGE_HEADER_BYTES 32
#ifdef DP_FUZZ /* so that small inputs have several */
#define PAGE_CHUNK_PAGES 2
#else
#define PAGE_CHUNK_PAGES 256 /* pages are handed on in chunks of at most this many */
#endif

enum page_command { PAGE_COMMAND_OPEN, PAGE_COMMAND_ADD, PAGE_COMMAND_PARENT, PAGE_COMMAND_CLOSE };
struct page_header {
	enum page_command command;
	bool lazy;          /* ADD */
	uint64_t pgno;      /* ADD */
	uint64_t pages;     /* ADD */
	bool shared_memory; /* OPEN: a segment, else a task */
	uint32_t id;        /* OPEN: vpid or shmid */
};
/* Takes a header apart. -EPROTO with the reason. */
int page_header_decode(const unsigned char bytes[static PAGE_HEADER_BYTES], struct page_header *header, struct dp_err *err);

struct page_sink {
	void *context;
	/* A page map starts; the one before is complete. */
	int (*open)(void *context, bool shared_memory, uint32_t id, struct dp_err *err);
	/* Pages of the open page map; data is borrowed. */
	int (*pages)(void *context, bool lazy, uint64_t pgno, uint64_t pages, const void *data, struct dp_err *err);
};

/* Receives the whole stream. 0 after CLOSE; -ECANCELED where it broke off (criu gave up: its log says why); -EPROTO; an error of
 * the sink as it is (nothing is read after it: close fd, and criu lets the tasks go on). fd is borrowed. */
int page_receiver_run(int fd, const struct page_sink *sink, struct dp_err *err);

#endif
