/* The source that is a CRIU page server: `criu dump --lazy-pages`, whose frozen tasks hold the pages, or `criu page-server
 * --lazy-pages`. Speaks the page-server protocol of CRIU 4.2: a native 32-byte header, no version, no greeting.
 *
 * How it works: GETs are pipelined; the server answers in order, often with less than was asked for (a pipe of it ends
 * there), and the rest is asked for again. Only pages that the images call lazy are ever asked for: any other hangs the server or
 * ends the session. The session's end decides over the source's life, so it is said, never left to chance:
 *   CLOSE                            the destination has everything; the source's tasks end
 *   a reset of the connection        the destination failed; the source's tasks go on
 *   end of file without CLOSE        the server takes for success too: so the socket is set to reset whenever it is closed
 *                                    without CLOSE, which the kernel does even for a process that is killed
 * Read-only. Errors: -ECONNRESET where the server is gone, -EPROTO where it says what was not asked. */
#ifndef DP_PAGER_SOURCE_CRIU_H
#define DP_PAGER_SOURCE_CRIU_H

#include "pager/source.h"
#include "transport/stream.h"

/* The images say what may be asked for; images_fd is borrowed and not needed afterwards. Takes the stream, also on failure. */
int source_criu_new(struct source **source, int images_fd, struct stream *stream, struct dp_err *err);
/* Tells the server that everything has come, after every outstanding answer was read; the source's tasks end. Without this call
 * the session ends by a reset when the last descriptor of its socket is closed, in whatever process. Blocks, 20 seconds at most.
 * Pages are no longer served afterwards. -ETIMEDOUT, -ECONNRESET, -EPROTO where the server did not confirm. */
int source_criu_end(struct source *source, struct dp_err *err);

#endif
