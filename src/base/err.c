#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int dp_fail(struct dp_err *err, int code, const char *format, ...)
{
	if (err) {
		va_list args;
		va_start(args, format);
		vsnprintf(err->text, sizeof(err->text), format, args);
		va_end(args);
	}
	return -code;
}

int dp_fail_errno(struct dp_err *err, int code, const char *format, ...)
{
	if (err) {
		va_list args;
		va_start(args, format);
		int used = vsnprintf(err->text, sizeof(err->text), format, args);
		va_end(args);
		if (used >= 0 && (size_t)used < sizeof(err->text))
			snprintf(err->text + used, sizeof(err->text) - (size_t)used, ": %s", strerror(code));
	}
	return -code;
}

void dp_err_doing(struct dp_err *err, const char *format, ...)
{
	if (!err)
		return;
	char inner[sizeof(err->text)];
	memcpy(inner, err->text, sizeof(inner));
	va_list args;
	va_start(args, format);
	int used = vsnprintf(err->text, sizeof(err->text), format, args);
	va_end(args);
	if (used >= 0 && (size_t)used < sizeof(err->text))
		snprintf(err->text + used, sizeof(err->text) - (size_t)used, ": %s", inner);
}
