/* Errors of control paths.
 *
 * A function that can fail returns >= 0 or -errno. Control paths also take a `struct dp_err *`, which lives on the
 * caller's stack and may be NULL: the function that fails says what failed (dp_fail), each caller adds what it was
 * doing (dp_err_doing), and the user reads one line, outermost first: `restore redis:prod: connect pool ...: Connection refused`.
 * Hot paths return codes only. No function here blocks, prints or allocates. Thread rule: one dp_err, one thread. */
#ifndef DP_BASE_ERR_H
#define DP_BASE_ERR_H

struct dp_err {
	char text[1024];
};

/* Sets the text; returns -code's negative form, so that `return dp_fail(err, EINVAL, "...")` reads well.
 * `code` is a positive errno. The text is what the caller wrote, nothing is appended. */
int dp_fail(struct dp_err *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Like dp_fail, with `: strerror(code)` behind the text. */
int dp_fail_errno(struct dp_err *err, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Puts `context: ` before the text. */
void dp_err_doing(struct dp_err *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
