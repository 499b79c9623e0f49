/* images.c: power cuts of a real file system: from a log of block writes (write_log.c) and the image that it began with,
 * makes disks that a power cut may leave, mounts each (the kernel replays the journal), and opens the checkpoint store on
 * it with the real reader. On one of GO_ON_EVERY the driver recovers and saves once more. Root; Linux with loop devices.
 *
 *   images BASE LOG DRIVER WORK [--images=N] [--seed=N] [--writers=2] [--bytes=400000] [--keep=2]
 *
 * WORK: a folder, best in memory, for the disk and its mount point. The cut is at a random entry of the log: what was
 * flushed before is there, of the 4 KiB blocks written since any subset. Lost: an acknowledged checkpoint (a mark in the
 * log before the cut) that is neither restorable nor followed by `keep` that are. SIGTERM: ends, and
 * says what was found so far. */
#define _GNU_SOURCE
#include "base/log.h"
#include "ckpt_io_sim.h" /* sim_random */
#include "lab.h"
#include "write_log.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 4096, GO_ON_EVERY = 20, ROUND = 500 };

typedef struct {
    uint8_t *data;
    size_t bytes;
} Bytes;

typedef struct {
    Bytes base, log;
    uint8_t *durable, *disk; /* disk: mapped from the file under the loop device */
    const LogEntry **entry;
    size_t entries, next, flushed; /* entries before `flushed` are durable, before `next` were written */
    CkptId acknowledged[LAB_SEEN_MAX];
    int acknowledgements; /* in this round so far; the array is a ring */
    int most;
    char disk_path[512], mount_path[512], loop_path[64], shape_options[128];
    const char *driver;
    LabShape shape;
    uint64_t rng;
} Lab;

static volatile sig_atomic_t stopped;

static void on_stop(int number) {
    (void)number;
    stopped = 1;
}

static void stop(const char *what) {
    fprintf(stderr, "images: %s: %s\n", what, strerror(errno));
    exit(EXIT_FAILED);
}

static Bytes map_file(const char *path) {
    struct stat s;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &s) < 0) stop(path);
    Bytes b = {mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0), (size_t)s.st_size};
    if (b.data == MAP_FAILED) stop(path);
    close(fd);
    return b;
}

/* Where the entries begin; they are packed, so headers are copied out. */
static void parse_log(Lab *lab) {
    size_t room = 0;
    for (size_t at = 0; at + sizeof(LogEntry) <= lab->log.bytes;) {
        LogEntry entry;
        memcpy(&entry, lab->log.data + at, sizeof entry);
        if (entry.bytes > lab->log.bytes - at - sizeof entry) break;
        if (lab->entries == room) {
            room = room ? 2 * room : 1024;
            lab->entry = realloc(lab->entry, room * sizeof *lab->entry);
            CHECK(lab->entry != NULL);
        }
        lab->entry[lab->entries++] = (const LogEntry *)(const void *)(lab->log.data + at);
        at += sizeof entry + entry.bytes;
    }
}

static LogEntry entry_at(const Lab *lab, size_t i, const uint8_t **data) {
    LogEntry entry;
    memcpy(&entry, lab->entry[i], sizeof entry);
    *data = (const uint8_t *)lab->entry[i] + sizeof entry;
    if (entry.kind == LOG_WRITE) CHECK(entry.offset + entry.bytes <= lab->base.bytes);
    return entry;
}

static void acknowledge(Lab *lab, const uint8_t *data, size_t bytes) {
    char text[64] = "";
    unsigned attempt;
    unsigned long long step;
    memcpy(text, data, bytes < sizeof text - 1 ? bytes : sizeof text - 1);
    if (sscanf(text, "ack %u %llu", &attempt, &step) == 2)
        lab->acknowledged[lab->acknowledgements++ % LAB_SEEN_MAX] = (CkptId){attempt, step};
    if (lab->acknowledgements > lab->most) lab->most = lab->acknowledgements;
}

/* Goes on to a cut after entry `to`. */
static void advance(Lab *lab, size_t to) {
    const uint8_t *data;
    for (; lab->next < to; lab->next++) {
        LogEntry entry = entry_at(lab, lab->next, &data);
        if (entry.kind == LOG_MARK) acknowledge(lab, data, entry.bytes);
        for (; entry.kind == LOG_FLUSH && lab->flushed < lab->next; lab->flushed++) {
            LogEntry write = entry_at(lab, lab->flushed, &data);
            if (write.kind == LOG_WRITE) memcpy(lab->durable + write.offset, data, write.bytes);
        }
    }
}

static void begin_round(Lab *lab) {
    memcpy(lab->durable, lab->base.data, lab->base.bytes);
    lab->next = lab->flushed = 0;
    lab->acknowledgements = 0;
}

/* The disk after the cut. */
static void make_disk(Lab *lab) {
    const uint8_t *data;
    uint64_t percent = (uint64_t[]){0, 10, 50, 90, 100}[sim_random(&lab->rng) % 5];
    memcpy(lab->disk, lab->durable, lab->base.bytes);
    for (size_t i = lab->flushed; i < lab->next; i++) {
        LogEntry write = entry_at(lab, i, &data);
        for (uint64_t at = 0, part; write.kind == LOG_WRITE && at < write.bytes; at += part) {
            part = BLOCK - (write.offset + at) % BLOCK;
            if (part > write.bytes - at) part = write.bytes - at;
            if (sim_random(&lab->rng) % 100 < percent) memcpy(lab->disk + write.offset + at, data + at, part);
        }
    }
}

/* A loop device over the disk's file for the whole run, gone with this process's mounts. */
static void attach(Lab *lab) {
    int control = open("/dev/loop-control", O_RDWR), loop = -1;
    int fd = open(lab->disk_path, O_RDWR);
    if (control < 0 || fd < 0) stop(control < 0 ? "/dev/loop-control" : lab->disk_path);
    for (int tries = 0; loop < 0 && tries < 16; tries++) {
        snprintf(lab->loop_path, sizeof lab->loop_path, "/dev/loop%d", ioctl(control, LOOP_CTL_GET_FREE));
        struct loop_config config = {.fd = (unsigned)fd, .block_size = 512};
        loop = open(lab->loop_path, O_RDWR);
        if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) < 0)
            close(loop), loop = -1; /* someone was faster */
    }
    if (loop < 0) stop("no loop device");
    close(loop);
    close(fd);
    close(control);
}

static void detach(const Lab *lab) {
    int loop = open(lab->loop_path, O_RDWR);
    if (loop < 0 || ioctl(loop, LOOP_CLR_FD, 0) < 0) perror(lab->loop_path);
    if (loop >= 0) close(loop);
}

static bool lab_mount(const Lab *lab) {
    int loop = open(lab->loop_path, O_RDWR);
    if (loop < 0 || ioctl(loop, BLKFLSBUF, 0) < 0) stop(lab->loop_path);
    close(loop);
    return mount(lab->loop_path, lab->mount_path, "ext4", MS_NOATIME, "") == 0;
}

/* Mounts, checks; adds to the counts what went wrong. */
static void check_image(Lab *lab, bool go_on, int *unmounted, int *lost, int *bad) {
    LabSeen seen;
    char folder[600], command[2048];
    if (!lab_mount(lab)) {
        printf("cut after entry %zu: cannot mount: %s\n", lab->next, strerror(errno));
        ++*unmounted;
        return;
    }
    snprintf(folder, sizeof folder, "%s/staging", lab->mount_path);
    lab_check(folder, &lab->shape, &seen);
    if (seen.bad) printf("cut after entry %zu: bad: %s\n", lab->next, seen.why);
    *bad += seen.bad;
    for (int i = 0; i < lab->acknowledgements && i < LAB_SEEN_MAX; i++)
        if (lab_lost(&seen, &lab->shape, lab->acknowledged[i])) {
            printf("cut after entry %zu: %u.%llu is lost\n", lab->next, lab->acknowledged[i].attempt,
                   (unsigned long long)lab->acknowledged[i].step);
            ++*lost;
        }
    if (go_on) {
        snprintf(command, sizeof command,
                 "%s write %s --checkpoints=2 %s >/dev/null && %s check %s %s >/dev/null", lab->driver,
                 folder, lab->shape_options, lab->driver, folder, lab->shape_options);
        if (system(command) != 0) {
            printf("cut after entry %zu: cannot go on: %s\n", lab->next, command);
            ++*bad;
        }
    }
    if (umount(lab->mount_path) < 0) stop("umount");
}

int main(int argc, char **argv) {
    static Lab lab = {.shape = {2, 2, 400000}, .rng = 1};
    size_t images = 100;
    bool ok = argc >= 5;
    for (int i = 5; ok && i < argc; i++) {
        const char *value = strchr(argv[i], '=');
        unsigned long long n = value ? strtoull(value + 1, NULL, 10) : 0;
        if (!strncmp(argv[i], "--images=", 9))
            images = n;
        else if (!strncmp(argv[i], "--seed=", 7))
            lab.rng = n;
        else if (!strncmp(argv[i], "--writers=", 10))
            lab.shape.writers = (int)n;
        else if (!strncmp(argv[i], "--bytes=", 8))
            lab.shape.bytes = n;
        else if (!strncmp(argv[i], "--keep=", 7))
            lab.shape.keep = (int)n;
        else
            ok = false;
    }
    if (!ok)
        return fprintf(stderr, "usage: images BASE LOG DRIVER WORK [--images=N] [--seed=N] ...\n"),
               EXIT_USAGE;
    setvbuf(stdout, NULL, _IOLBF, 0);
    log_open(1, true);
    if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        stop("a mount namespace of its own (needs root)");
    lab.base = map_file(argv[1]);
    lab.log = map_file(argv[2]);
    lab.driver = argv[3];
    parse_log(&lab);
    snprintf(lab.shape_options, sizeof lab.shape_options, "--writers=%d --bytes=%zu --keep=%d",
             lab.shape.writers, lab.shape.bytes, lab.shape.keep);
    snprintf(lab.disk_path, sizeof lab.disk_path, "%s/disk.img", argv[4]);
    snprintf(lab.mount_path, sizeof lab.mount_path, "%s/mount", argv[4]);
    if (mkdir(lab.mount_path, 0700) < 0 && errno != EEXIST) stop(lab.mount_path);
    int fd = open(lab.disk_path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)lab.base.bytes) < 0) stop(lab.disk_path);
    lab.disk = mmap(NULL, lab.base.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    lab.durable = malloc(lab.base.bytes);
    CHECK(lab.disk != MAP_FAILED && lab.durable != NULL);
    attach(&lab);
    signal(SIGTERM, on_stop);
    signal(SIGINT, on_stop);
    int unmounted = 0, lost = 0, bad = 0, went_on = 0;
    double began = log_seconds();
    size_t done = 0;
    while (done < images &&
           !stopped) { /* rounds over the whole log, with ascending cuts, each at random in its share */
        size_t round = images - done < ROUND ? images - done : ROUND;
        begin_round(&lab);
        for (size_t i = 0; i < round && !stopped; i++, done++) {
            size_t low = lab.entries * i / round, high = lab.entries * (i + 1) / round;
            advance(&lab, low + (high > low ? (size_t)(sim_random(&lab.rng) % (high - low)) : 0));
            bool go_on = sim_random(&lab.rng) % GO_ON_EVERY == 0;
            make_disk(&lab);
            went_on += go_on;
            check_image(&lab, go_on, &unmounted, &lost, &bad);
        }
    }
    detach(&lab);
    unlink(lab.disk_path);
    rmdir(lab.mount_path);
    printf("%zu images of %zu, from a log of %zu entries with %d acknowledged checkpoints: "
           "not mountable %d, lost %d, bad %d; gone on with %d; %.3f s each\n",
           done, images, lab.entries, lab.most, unmounted, lost, bad, went_on,
           (log_seconds() - began) / (double)(done ? done : 1));
    return unmounted || lost || bad || !lab.most ? EXIT_FAILED : EXIT_DONE;
}
