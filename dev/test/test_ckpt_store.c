/* test_ckpt_store.c: checkpoints are written by some writers and read by others: the bytes are the same, whatever the
 * ranges; what may go goes, and what is kept stays; a full or failing disk ends a shard, not the run. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt/ckpt_reader.h"
#include "ckpt/store.h"
#include "ckpt_lab.h"
#include "test.h"

typedef struct {
    char text[800];
} TestName;

/* Random layouts: tensors of all types and odd sizes, cut among W writers at odd places, some copied. */
static void round_trip(uint64_t seed, int writers, CkptPolicy policy) {
    Lab lab;
    lab_open(&lab, seed, writers, policy);
    lab_save(&lab, 1, true);
    lab_check(&lab, (CkptId){1, 1}, seed);
    lab_change(&lab, seed + 1);
    lab_save(&lab, 2, true);
    lab_check(&lab, (CkptId){1, 2}, seed + 1);
    lab_close(&lab);
}

static void put(Store *store, CkptId id, const CkptShard *shard, const char *folder) {
    char key[192];
    TestName path;
    size_t bytes;
    Error err = {""};
    bool existed;
    snprintf(path.text, sizeof path.text, "%s/%s", folder, shard->name);
    uint8_t *data = test_file_read(path.text, &bytes);
    CHECK(data && bytes >= shard->bytes);
    ckpt_store_key(key, id, "seg", shard->node, shard->rank);
    TEST_CHECK(store_put_small(store, key, data, shard->bytes, true, &existed, &err), "%s", err.text);
    free(data);
}

/* The state of the only checkpoint of a place, and whether its tensors read well. */
static CkptState look(Lab *lab, const char *place, CkptId id, uint64_t seed) {
    CkptReader *reader = NULL;
    const CkptInfo *list;
    Error err = {""};
    TEST_CHECK(ckpt_reader_open(&reader, place, &err), "%s", err.text);
    if (!reader) return CKPT_CORRUPT;
    size_t count = ckpt_reader_list(reader, &list);
    TEST_CHECK(count == 1 && ckpt_id_compare(list[0].id, id) == 0, "%d checkpoints", (int)count);
    CkptState state = count ? list[0].state : CKPT_CORRUPT;
    if (state == CKPT_RESTORABLE) {
        uint64_t bad = 9;
        lab_check_reader(lab, reader, id, seed);
        TEST_CHECK(ckpt_reader_verify(reader, id, &bad, NULL, &err) && !bad, "%s", err.text);
    } else if (count) { /* what is there can be read, and what is not is said not to be */
        uint64_t there = 0, missing = 0, wrong = 0;
        for (int w = 0; w < lab->writers; w++)
            for (size_t i = 0; i < lab->num_views[w]; i++) {
                const TensorView *v = &lab->views[w][i];
                size_t bytes = (size_t)(v->end - v->begin) * ckpt_type_bytes(v->type);
                void *data = malloc(bytes + 1);
                CHECK(data != NULL);
                bool has = ckpt_reader_has(reader, id, v->name, v->begin, v->end);
                bool read = ckpt_reader_read(reader, id, v->name, v->type, v->begin, v->end, data, &err);
                there += has && bytes;
                missing += !has;
                wrong += has != read || (read && bytes && memcmp(data, v->data, bytes) != 0);
                free(data);
            }
        TEST_CHECK(there && missing && !wrong, "%d there, %d missing, %d wrong", (int)there, (int)missing,
                   (int)wrong);
    }
    ckpt_reader_close(reader);
    return state;
}

/* A checkpoint's segments as objects of a store, one after the other, then the table and COMMIT. */
static void test_store(void) {
    Lab lab;
    CkptReader *reader = NULL;
    const CkptShard *shards;
    const void *table;
    size_t count, bytes;
    Error err = {""};
    Store *store = NULL;
    CkptId id = {1, 5};
    char key[192];
    uint8_t record[4096];
    bool existed;
    TestPath place = test_path("store");
    lab_open(&lab, 51, 3, CKPT_POLICY_LAZY);
    lab_save(&lab, 5, true);
    TEST_CHECK(store_open(&store, place.path, &(StoreConfig){0}, &err), "%s", err.text);
    TEST_CHECK(ckpt_reader_open(&reader, lab.directory, &err), "%s", err.text);
    CHECK(store && reader && ckpt_reader_shards(reader, id, &shards, &count, &err) && count == 3);
    put(store, id, &shards[0], lab.directory);
    put(store, id, &shards[2], lab.directory);
    TEST_CHECK(look(&lab, place.path, id, 51) == CKPT_INCOMPLETE, "a shard is not there");
    put(store, id, &shards[1], lab.directory);
    TEST_CHECK(look(&lab, place.path, id, 51) == CKPT_RESTORABLE, "without COMMIT");
    CHECK(ckpt_reader_table(reader, id, &table, &bytes, &err) &&
          ckpt_reader_commit_record(reader, id, record, &err));
    ckpt_store_key(key, id, "table", "", 0);
    TEST_CHECK(store_put_small(store, key, table, bytes, true, &existed, &err), "%s", err.text);
    ckpt_store_key(key, id, "COMMIT", "", 0);
    TEST_CHECK(store_put_small(store, key, record, sizeof record, true, &existed, &err), "%s", err.text);
    TEST_CHECK(look(&lab, place.path, id, 51) == CKPT_RESTORABLE, "with COMMIT");
    ckpt_reader_close(reader);
    store_close(store);
    /* the staging folder of one node of several */
    TestName manifest;
    snprintf(manifest.text, sizeof manifest.text, "%s/manifest/host-example.1.log", lab.directory);
    CHECK(unlink(manifest.text) == 0);
    TEST_CHECK(look(&lab, lab.directory, id, 51) == CKPT_INCOMPLETE, "a writer is on another node");
    lab_close(&lab);
}

/* An empty place, and none. */
static void test_nothing(void) {
    CkptReader *reader = NULL;
    const CkptInfo *list;
    Error err = {""};
    uint8_t run[16];
    TestPath absent = test_path("absent"), empty = test_path("");
    const char *places[] = {absent.path, empty.path};
    for (int i = 0; i < 2; i++) {
        TEST_CHECK(ckpt_reader_open(&reader, places[i], &err), "%s", err.text);
        if (!reader) continue;
        TEST_CHECK(ckpt_reader_list(reader, &list) == 0 && !ckpt_reader_run(reader, run), "%s", places[i]);
        TEST_CHECK(!ckpt_reader_has(reader, (CkptId){1, 1}, "x", 0, 1), "nothing is there");
        ckpt_reader_close(reader);
    }
}

int main(void) {
    log_open(0, true);
    test_folder_open();
    for (uint64_t seed = 1; seed <= 9; seed++) round_trip(seed, 1 + (int)(seed % 5), (CkptPolicy)(seed % 3));
    test_store();
    test_nothing();
    test_folder_close();
    return test_end("ckpt_store");
}
