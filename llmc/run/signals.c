/* signals.c: see signals.h. */
#define _POSIX_C_SOURCE 200809L
#include "run/signals.h"
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static volatile sig_atomic_t stop_signal, save_asked;
static pid_t launcher; /* 0: none to watch */

static void on_signal(int number) {
    if (number == SIGUSR1) {
        save_asked = 1;
        return;
    }
    stop_signal = number;
    if (number == SIGINT) signal(SIGINT, SIG_DFL);
}

void signals_install(bool under_mpirun) {
    launcher = under_mpirun ? getppid() : 0;
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* losing the reader of stdout is no reason to lose the run */
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN) /* nohup's wish */
        sigaction(SIGHUP, &action, NULL);
}

const char *signals_stop(void) {
    switch (stop_signal) {
    case 0: return launcher && getppid() != launcher ? "mpirun is gone" : NULL;
    case SIGINT: return "SIGINT";
    case SIGHUP: return "SIGHUP";
    case SIGUSR2: return "SIGUSR2";
    default: return "SIGTERM";
    }
}

bool signals_save(void) {
    bool asked = save_asked;
    save_asked = 0;
    return asked;
}
