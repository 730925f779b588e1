#include "sys/awake.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/base.h"

#define NO_DELAY 0
#define ANY_DELAY INT32_MAX

static void request(struct awake *awake, int32_t delay_us)
{
	ssize_t ignored = write(awake->fd, &delay_us, sizeof(delay_us));

	(void)ignored; /* it is only slower then */
	awake->held = delay_us == NO_DELAY;
}

void awake_init(struct awake *awake, bool wanted)
{
	*awake = (struct awake){ .fd = wanted ? open("/dev/cpu_dma_latency", O_WRONLY | O_CLOEXEC) : -1 };
}

void awake_done(struct awake *awake)
{
	dp_close_fd(&awake->fd);
}

void awake_hold(struct awake *awake, uint64_t now_ns)
{
	awake->last_ns = now_ns;
	if (awake->fd >= 0 && !awake->held)
		request(awake, NO_DELAY);
}

void awake_note(struct awake *awake, uint64_t now_ns)
{
	awake->last_ns = now_ns;
	if (awake->held || awake->fd < 0)
		return;
	if (now_ns - awake->window_ns > AWAKE_WINDOW_NS) {
		awake->window_ns = now_ns;
		awake->requests = 0;
	}
	if (++awake->requests >= AWAKE_REQUESTS)
		request(awake, NO_DELAY);
}

uint64_t awake_rest(struct awake *awake, uint64_t now_ns)
{
	if (!awake->held)
		return UINT64_MAX;
	uint64_t since = now_ns - awake->last_ns;
	if (since < AWAKE_LINGER_NS)
		return AWAKE_LINGER_NS - since;
	request(awake, ANY_DELAY);
	awake->requests = 0;
	return UINT64_MAX;
}
