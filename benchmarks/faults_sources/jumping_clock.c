/* A wall clock that jumps a day ahead, a day back, and on, every JUMP_MS milliseconds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

#define JUMP_MS 700
#define DAY_S 86400

static int (*real)(clockid_t, struct timespec *);

int clock_gettime(clockid_t clock, struct timespec *found)
{
    struct timespec steady;
    int result;
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    result = real(clock, found);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) {
        real(CLOCK_MONOTONIC, &steady);
        found->tv_sec += DAY_S * ((steady.tv_sec * 1000 / JUMP_MS) % 3 - 1);
    }
    return result;
}

int gettimeofday(struct timeval *found, void *zone)
{
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    (void)zone;
    found->tv_sec = now.tv_sec;
    found->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *found)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (found)
        *found = now.tv_sec;
    return now.tv_sec;
}
