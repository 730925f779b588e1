/* link_watch: for a source of several links, one descriptor that stands for those of all: an epoll set that follows each link's
 * descriptor as connections come and go. */
#ifndef DP_PAGER_LINK_WATCH_H
#define DP_PAGER_LINK_WATCH_H

#include "client/link.h"

struct link_watch {
	struct link *link;
	int epoll_fd, watched_fd;
	bool writing, changed; /* changed: another descriptor, perhaps under the same number */
};

/* Both borrowed. */
struct link_watch link_watch(struct link *link, int epoll_fd);
/* As link_work. */
uint64_t link_watch_work(struct link_watch *watch);
/* After calls of the link. */
void link_watch_update(struct link_watch *watch);

#endif
