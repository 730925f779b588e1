/* awake: for as long as answers are wanted at once, the host's processors do not sleep.
 *
 * Who waits for a page leaves a processor idle, and one that has halted takes long to come back: in a virtual machine 20 us,
 * twice or more a fault. So while requests follow closely on each other, the kernel is asked for wake-ups without delay (PM QoS:
 * the number of microseconds written to /dev/cpu_dma_latency counts until the file is closed;
 * Documentation/power/pm_qos_interface.rst), and a while after the last one no longer. It costs power, and only then. The request
 * ends with the process, however that ends.
 *
 * Without the right to, or without the device, everything works as before. Thread rule: one thread. */
#ifndef DP_SYS_AWAKE_H
#define DP_SYS_AWAKE_H

#include <stdbool.h>
#include <stdint.h>

#define AWAKE_WINDOW_NS (2u * 1000 * 1000) /* so many requests */
#define AWAKE_REQUESTS 4u                  /* within so long a time are "closely on each other" */
#define AWAKE_LINGER_NS (20u * 1000 * 1000)

struct awake {
	int fd; /* -1: not to be had, or not wanted */
	bool held;
	uint32_t requests; /* in the window that began at */
	uint64_t window_ns, last_ns;
};

/* wanted false: never does anything. */
void awake_init(struct awake *awake, bool wanted);
void awake_done(struct awake *awake);
/* Now, whatever came before: something is about to begin. */
void awake_hold(struct awake *awake, uint64_t now_ns);
/* A request came. */
void awake_note(struct awake *awake, uint64_t now_ns);
/* Lets go when it is time. Returns ns until it has to be called again; UINT64_MAX: after the next request. */
uint64_t awake_rest(struct awake *awake, uint64_t now_ns);

#endif
