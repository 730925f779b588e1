#include "pager/link_watch.h"

#include <errno.h>
#include <sys/epoll.h>

struct link_watch link_watch(struct link *link, int epoll_fd)
{
	struct link_watch watch = { .link = link, .epoll_fd = epoll_fd, .watched_fd = -1 };
	link_watch_update(&watch);
	return watch;
}

uint64_t link_watch_work(struct link_watch *watch)
{
	int before = link_fd(watch->link);
	uint64_t until_ns = link_work(watch->link);
	watch->changed |= link_fd(watch->link) != before;
	return until_ns;
}

void link_watch_update(struct link_watch *watch)
{
	int fd = link_fd(watch->link);
	bool writing = link_wants_write(watch->link);
	struct epoll_event event = { .events = EPOLLIN | (writing ? EPOLLOUT : 0u) };
	if (fd == watch->watched_fd && writing == watch->writing && !watch->changed)
		return;
	/* The one before has left by itself, closed, or never says anything. */
	if (epoll_ctl(watch->epoll_fd, EPOLL_CTL_MOD, fd, &event) && errno == ENOENT)
		epoll_ctl(watch->epoll_fd, EPOLL_CTL_ADD, fd, &event);
	watch->watched_fd = fd;
	watch->writing = writing;
	watch->changed = false;
}
