/* arguments: the command line of an OCI runtime (runc's, and crun's and youki's, which follow it), taken apart as far as we
 * need it. Pure functions. */
#ifndef DP_OCI_ARGUMENTS_H
#define DP_OCI_ARGUMENTS_H

#include <stdbool.h>

struct oci_arguments {
	int command; /* index in argv; 0: there is none */
	int id;      /* index; 0: none */
	int image_path; /* index of the argument that has the value (behind `=`, if there is one); 0: not given */
	const char *images, *work, *bundle, *log, *log_format, *root; /* borrowed from argv, or NULL */
	bool leave_running, pre_dump, lazy_pages, page_server, parent, help;
};

/* Never fails: what is unknown is taken for an option without a value. */
void oci_arguments_read(int argc, char *const *argv, struct oci_arguments *arguments);

#endif
