/* mpi_internal.h: what the files of the MPI backend share: comm_mpi.c (its operations), mpi_meet.c (how ranks meet, and
 * reduce what is small) and mpi_ring.c (what is large). */
#ifndef LLMC_COMM_MPI_INTERNAL_H
#define LLMC_COMM_MPI_INTERNAL_H
#include "comm/backend.h"
#include <mpi.h>

enum { TAG_MEET = 1, TAG_DATA, TAG_PAIR, TAG_PAIR_DATA };
enum {
    ALONG_BYTES = 16 << 10, /* of data in the message of a header; and halved only if more */
    SMALL_BYTES = 128 << 10,
    SEGMENT_BYTES = 256 << 10,
    WINDOW = 4,
    MESSAGE_BYTES = sizeof(CommHeader) + ALONG_BYTES
};

typedef struct {
    MPI_Comm comm;
    char *out, *in;  /* (MESSAGE_BYTES) a header, and data along with it */
    char *stage;     /* (WINDOW, SEGMENT_BYTES), or SMALL_BYTES */
    size_t *offsets; /* (size + 1) scratch */
} MpiState;

/* --- comm_mpi.c --- */

typedef struct {
    double since; /* the last progress */
    int peer;     /* who is waited for */
} MpiWait;

/* An error of the library's. Returns false. */
bool mpi_error(CommGroup *group, int code, Error *err);
/* Between two looks that found nothing. False: another rank has failed, or the deadline has passed; what is under way is
 * then left alone, since to cancel it could block. */
bool mpi_keep_waiting(CommGroup *group, const MpiWait *wait, Error *err);
/* Until all requests (n) are done. code: what the calls that made them returned. */
bool mpi_wait_all(CommGroup *group, int code, int n, MPI_Request *requests, int peer, Error *err);
/* Of two calls: MPI_SUCCESS if both succeeded. */
int mpi_first_failure(int a, int b);

/* --- mpi_meet.c --- */

/* Compares all headers, and reduces data (count, at most SMALL_BYTES): everyone ends with the same bits. */
bool mpi_meet(CommGroup *group, char *data, size_t count, CommType type, CommOp op, Error *err);

/* --- mpi_ring.c --- */

/* Steps first_step .. end: [0, size - 1) reduce-scatter, [size - 1, 2 size - 2) all-gather. */
bool mpi_go_around(CommGroup *group, char *data, const size_t *offsets, CommType type, CommOp op,
                   int first_step, int end, Error *err);
#endif
