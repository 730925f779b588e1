/* page_range: what requests about pages are made of. Shared by the protocol, the pool and the client. */
#ifndef DP_WIRE_PAGE_RANGE_H
#define DP_WIRE_PAGE_RANGE_H

#include <stdint.h>

/* Page numbers are virtual addresses >> 12: 48 bits of address leave 36. */
#define PGNO_BITS 36
#define PGNO_END (UINT64_C(1) << PGNO_BITS)

/* A run of pages of one space. pgno = virtual address >> 12. */
struct page_range {
	uint64_t pgno;
	uint64_t pages;
};

enum request_class { CLASS_DEMAND = 0, CLASS_PREFETCH = 1, CLASS_WRITE_BACK = 2 };

#endif
