/* poll of a fuzz target: nobody waits, the first descriptor is ready for all. Linked with --wrap=poll. */
#include <poll.h>

int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *polled, nfds_t count, int timeout_ms)
{
	for (nfds_t i = 0; i < count; i++)
		polled[i].revents = i ? 0 : polled[i].events;
	return 1;
}
