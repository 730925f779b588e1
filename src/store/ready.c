#include "store/ready.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/base.h"

#define QUEUE_LENGTH 64u
#define STEP_BYTES (UINT64_C(2) << 20) /* a huge page: a faulting writer waits for the map's lock no longer than this takes */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct ready {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct {
		uint8_t *memory;
		uint64_t bytes;
	} queue[QUEUE_LENGTH];
	unsigned first, count;
	bool stopping;
};

/* One step of the area at the front; false where there is nothing. The lock is held at both ends, not between. */
static bool touch_step(struct ready *ready)
{
	if (ready->count == 0)
		return false;
	uint8_t *memory = ready->queue[ready->first].memory;
	uint64_t bytes = DP_MIN(ready->queue[ready->first].bytes, STEP_BYTES);

	ready->queue[ready->first].memory += bytes;
	ready->queue[ready->first].bytes -= bytes;
	if (ready->queue[ready->first].bytes == 0) {
		ready->first = (ready->first + 1) % QUEUE_LENGTH;
		ready->count--;
	}
	pthread_mutex_unlock(&ready->lock);
	/* A hint: where it fails (Linux before 5.14, memory is out) the writer touches for itself. */
	madvise(memory, bytes, MADV_POPULATE_WRITE);
	pthread_mutex_lock(&ready->lock);
	return true;
}

static void *work(void *context)
{
	struct ready *ready = context;

	pthread_mutex_lock(&ready->lock);
	while (!ready->stopping)
		if (!touch_step(ready))
			pthread_cond_wait(&ready->work, &ready->lock);
	pthread_mutex_unlock(&ready->lock);
	return NULL;
}

int ready_new(struct ready **result)
{
	struct ready *ready = calloc(1, sizeof(*ready));
	sigset_t all, before;

	if (!ready)
		return -ENOMEM;
	pthread_mutex_init(&ready->lock, NULL);
	pthread_cond_init(&ready->work, NULL);
	/* Signals are for the server's thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&ready->thread, NULL, work, ready);

	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		free(ready);
		return -error;
	}
	*result = ready;
	return 0;
}

void ready_free(struct ready *ready)
{
	if (!ready)
		return;
	pthread_mutex_lock(&ready->lock);
	ready->stopping = true;
	pthread_cond_signal(&ready->work);
	pthread_mutex_unlock(&ready->lock);
	pthread_join(ready->thread, NULL);
	pthread_cond_destroy(&ready->work);
	pthread_mutex_destroy(&ready->lock);
	free(ready);
}

void ready_touch(struct ready *ready, void *memory, uint64_t bytes)
{
	pthread_mutex_lock(&ready->lock);
	if (ready->count < QUEUE_LENGTH) {
		unsigned last = (ready->first + ready->count++) % QUEUE_LENGTH;

		ready->queue[last].memory = memory;
		ready->queue[last].bytes = bytes;
		pthread_cond_signal(&ready->work);
	}
	pthread_mutex_unlock(&ready->lock);
}
