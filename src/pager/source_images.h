/* The source that is a directory of CRIU images: what `criu dump` wrote. Read-only; every answer comes from within the call. */
#ifndef DP_PAGER_SOURCE_IMAGES_H
#define DP_PAGER_SOURCE_IMAGES_H

#include "pager/source.h"

/* Maps the pages of the images (and of their parents, through the `parent` links) below images_fd, which is borrowed and not
 * needed afterwards. -ENODATA where the pages stayed with a page server; -EBADMSG, -ENOENT, -ENOMEM with a text. */
int source_images_new(struct source **source, int images_fd, struct dp_err *err);

#endif
