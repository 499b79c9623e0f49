/* run_state.h: the state of a run in one file of its folder: named records of bytes, each with its CRC-32C.
 *
 * It knows nothing of models: the caller says which memory is which record. What always holds: while a save
 * is under way or fails, crashes or loses power, the newest complete state stays readable under one of three
 * names, newest first:
 *   state.new.bin    complete and durable, but not renamed yet: only there after a crash inside a save
 *   state.bin        the newest
 *   state.prev.bin   the one before it, which a damaged newest falls back to
 * Loading takes the first whose header and wanted records are whole, and warns about those that it passed
 * over.
 *
 * The file, little-endian, without gaps, so every bit of it is under a checksum:
 *   header (32)   "toroidrs", u32 version 1, u32 records, u64 bytes of the file, u32 CRC of the table, u32
 *                 CRC of the 28 bytes before
 *   table         per record 64 bytes: name (44, zero-filled), u32 CRC of the data, u64 offset, u64 bytes
 *   data          the records, in the table's order */
#ifndef LLMC_RUN_STATE_H
#define LLMC_RUN_STATE_H
#include "base/error.h"
#include "run/tensor_io.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { RUN_STATE_NAME_BYTES = 44, RUN_STATE_RECORDS_MAX = 1024 };

typedef struct {
    const char *name; /* 1 .. 43 bytes */
    void *data;
    size_t bytes;
    bool on_device; /* data is device memory (device.h) */
} RunRecord;

/* Is there a state, whole or not? */
bool run_state_exists(const char *directory);

/* Writes all records as the folder's newest state; when it returns true they are durable. On failure the
 * states that were there are still there. Names must differ. */
bool run_state_save(const char *directory, const RunRecord *records, size_t count, Error *err);

/* Fills every record from the newest state that has all of them whole and with exactly their sizes; records
 * of the state that are not asked for are skipped. On failure the memory's contents are undefined. */
bool run_state_load(const char *directory, const RunRecord *records, size_t count, Error *err);

typedef struct {
    TensorFile file; /* the file that holds it, open: a save may rename it meanwhile */
    uint64_t offset, bytes;
} RunStatePlace;

/* Where the newest state with a whole record of this name has it; reads it once to check it. On success the
 * caller closes place->file. */
bool run_state_find(const char *directory, const char *name, RunStatePlace *place, Error *err);
#endif
