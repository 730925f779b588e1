#include "pool/committer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/base.h"

struct job_queue {
	struct commit_job *first, **last;
};

struct committer {
	struct store *store;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t work;
	struct job_queue waiting, done;
	bool stopping;
	int event_fd;
};

static void push(struct job_queue *queue, struct commit_job *job)
{
	job->next = NULL;
	*queue->last = job;
	queue->last = &job->next;
}

static struct commit_job *pop(struct job_queue *queue)
{
	struct commit_job *job = queue->first;

	if (job) {
		queue->first = job->next;
		if (!queue->first)
			queue->last = &queue->first;
	}
	return job;
}

static void *work(void *context)
{
	struct committer *committer = context;
	const uint64_t one = 1;

	pthread_mutex_lock(&committer->lock);
	while (!committer->stopping) {
		struct commit_job *job = pop(&committer->waiting);

		if (!job) {
			pthread_cond_wait(&committer->work, &committer->lock);
			continue;
		}
		pthread_mutex_unlock(&committer->lock);
		job->result = committer->store->ops->sync(committer->store);
		pthread_mutex_lock(&committer->lock);
		push(&committer->done, job);
		/* Full means that it is readable already. After any other failure again: nobody else tells that the job is
		 * done. */
		for (unsigned tries = 0; tries < 1000 && write(committer->event_fd, &one, sizeof(one)) < 0 && errno != EAGAIN;)
			tries++;
	}
	pthread_mutex_unlock(&committer->lock);
	return NULL;
}

int committer_new(struct committer **result, struct store *store)
{
	struct committer *committer = calloc(1, sizeof(*committer));
	sigset_t all, before;
	int error;

	if (!committer)
		return -ENOMEM;
	committer->store = store;
	committer->waiting.last = &committer->waiting.first;
	committer->done.last = &committer->done.first;
	pthread_mutex_init(&committer->lock, NULL);
	pthread_cond_init(&committer->work, NULL);
	committer->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	/* Signals are for the server's thread. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = committer->event_fd < 0 ? errno : pthread_create(&committer->thread, NULL, work, committer);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error) {
		dp_close_fd(&committer->event_fd);
		free(committer);
		return -error;
	}
	*result = committer;
	return 0;
}

void committer_free(struct committer *committer)
{
	struct commit_job *job;

	if (!committer)
		return;
	pthread_mutex_lock(&committer->lock);
	committer->stopping = true;
	pthread_cond_signal(&committer->work);
	pthread_mutex_unlock(&committer->lock);
	pthread_join(committer->thread, NULL);
	while ((job = pop(&committer->waiting)) || (job = pop(&committer->done)))
		free(job);
	pthread_cond_destroy(&committer->work);
	pthread_mutex_destroy(&committer->lock);
	close(committer->event_fd);
	free(committer);
}

int committer_fd(const struct committer *committer)
{
	return committer->event_fd;
}

void committer_submit(struct committer *committer, struct commit_job *job)
{
	pthread_mutex_lock(&committer->lock);
	push(&committer->waiting, job);
	pthread_cond_signal(&committer->work);
	pthread_mutex_unlock(&committer->lock);
}

struct commit_job *committer_take(struct committer *committer)
{
	uint64_t count;
	ssize_t ignored = read(committer->event_fd, &count, sizeof(count));
	struct commit_job *job;

	(void)ignored;
	pthread_mutex_lock(&committer->lock);
	job = pop(&committer->done);
	pthread_mutex_unlock(&committer->lock);
	return job;
}
