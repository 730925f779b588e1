/* Errors as they travel: fixed numbers, whatever the numbers of this system are. */
#include <errno.h>

#include "base/base.h"
#include "wire/message.h"

/* The numbers are those of Linux on most architectures, but fixed here. */
static const struct {
	uint32_t number;
	int error;
} errors[] = {
	{ 1, EPERM },	      { 2, ENOENT },	       { 5, EIO },	   { 6, ENXIO },       { 11, EAGAIN },
	{ 12, ENOMEM },	      { 13, EACCES },	       { 16, EBUSY },	   { 17, EEXIST },     { 22, EINVAL },
	{ 24, EMFILE },	      { 27, EFBIG },	       { 28, ENOSPC },	   { 30, EROFS },      { 34, ERANGE },
	{ 36, ENAMETOOLONG }, { 61, ENODATA },	       { 71, EPROTO },	   { 74, EBADMSG },    { 75, EOVERFLOW },
	{ 90, EMSGSIZE },     { 93, EPROTONOSUPPORT }, { 95, EOPNOTSUPP }, { 110, ETIMEDOUT }, { 116, ESTALE },
	{ 122, EDQUOT },
};

uint32_t message_error_number(int error)
{
	for (size_t i = 0; i < ARRAY_LENGTH(errors); i++)
		if (errors[i].error == error)
			return errors[i].number;
	return 5;
}

int message_error_errno(uint32_t number)
{
	for (size_t i = 0; i < ARRAY_LENGTH(errors); i++)
		if (errors[i].number == number)
			return errors[i].error;
	return EIO;
}
