/* What export and verify share: a request put together from a run directory. Local; private to the two. */
#ifndef CLOQWORK_RUN_EXPORT_REQUEST_H
#define CLOQWORK_RUN_EXPORT_REQUEST_H

#include "export/export.h"
#include "session/session.h"

/* One more matrix of q->matrices, which has room for it. setting_name is borrowed. E_MEMORY. */
status export_request_add(const session *c, int64_t layer, linear_id l, const char *setting_name, int rank, export_request *q);
void export_request_free(export_request *q);

status export_request_real_type(const char *option, const char *text, real_type *type); /* "float16" …; E_USAGE */

#endif
