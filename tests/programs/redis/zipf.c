#include "zipf.h"

#include <math.h>

#include "value.h"

#define THETA 0.99

void zipf_init(struct zipf *zipf, uint64_t items)
{
	*zipf = (struct zipf){.items = items};
	for (uint64_t i = 1; i <= items; i++)
		zipf->zeta += pow((double)i, -THETA);
	zipf->eta = (1 - pow(2.0 / (double)items, 1 - THETA)) / (1 - (1 + pow(2, -THETA)) / zipf->zeta);
}

uint64_t zipf_rank(const struct zipf *zipf, uint64_t *random)
{
	double uniform = (double)(random_next(random) >> 11) / (double)(1ull << 53), scaled = uniform * zipf->zeta;

	if (scaled < 1)
		return 0;
	if (scaled < 1 + pow(0.5, THETA))
		return 1;
	uint64_t rank = (uint64_t)((double)zipf->items * pow(zipf->eta * uniform - zipf->eta + 1, 1 / (1 - THETA)));
	return rank < zipf->items ? rank : zipf->items - 1;
}

uint64_t zipf_scattered(const struct zipf *zipf, uint64_t *random)
{
	return zipf_rank(zipf, random) * 2654435761ull % zipf->items;
}
