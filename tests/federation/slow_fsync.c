/* Preloaded by test_slow_disk.py: every fsync and fdatasync takes half a second longer. */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void wait_half_a_second(void) {
    struct timespec left = {0, 500000000};
    while (nanosleep(&left, &left)) {
    }
}

int fsync(int descriptor) {
    wait_half_a_second();
    return (int)syscall(SYS_fsync, descriptor);
}

int fdatasync(int descriptor) {
    wait_half_a_second();
    return (int)syscall(SYS_fdatasync, descriptor);
}
