/* ckpt_io.c: which body of ckpt_io.h is used. Nothing else is in this file, so that a test that defines these two
 * functions itself runs the whole store on a body of its own. */
#include "ckpt/ckpt_io.h"
#include <string.h>

bool ckpt_io_open(CkptIo *io, const char *kind, const char **why, Error *err) {
    static _Thread_local Error refused;
    *why = "";
    if (!strcmp(kind, "plain")) return ckpt_io_plain_open(io, err);
    if (!strcmp(kind, "uring")) return ckpt_io_uring_open(io, err);
    if (strcmp(kind, "auto") != 0)
        return error_set(err, "%s: no such way to write checkpoints (auto, uring or plain)", kind);
    if (ckpt_io_uring_open(io, &refused)) return true;
    *why = refused.text;
    return ckpt_io_plain_open(io, err);
}

void ckpt_io_close(CkptIo *io) {
    if (io->body) io->body->close(io);
    io->body = NULL;
}
