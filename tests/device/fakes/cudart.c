/* CUDA's runtime on the processor: device memory is memory, and a stream has work until fake_end is called. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static atomic_int pending;
static atomic_int allocations;

void fake_begin(void) { atomic_fetch_add(&pending, 1); }
void fake_end(void) { atomic_fetch_sub(&pending, 1); }
int fake_allocations(void) { return atomic_load(&allocations); }

const char *cudaGetErrorString(int code) {
    return code == 2 ? "out of memory" : code == 35 ? "CUDA driver version is insufficient" : "invalid argument";
}

static int broken(void) { return getenv("FAKE_CUDA_ERROR") ? atoi(getenv("FAKE_CUDA_ERROR")) : 0; }

int cudaMalloc(void **address, size_t size) {
    if (broken()) return broken();
    *address = malloc(size);
    if (*address == NULL) return 2;
    atomic_fetch_add(&allocations, 1);
    return 0;
}

int cudaFree(void *address) {
    if (address != NULL) atomic_fetch_sub(&allocations, 1);
    free(address);
    return 0;
}

int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    if (kind != 1 && kind != 2) return 1;
    memcpy(to, from, size);
    return 0;
}

int cudaStreamCreate(void **stream) {
    atomic_fetch_add(&allocations, 1);
    return (*stream = malloc(1)) == NULL ? 2 : 0;
}

int cudaStreamDestroy(void *stream) { return cudaFree(stream); }

int cudaStreamSynchronize(void *stream) {
    if (stream == NULL) return 1;
    while (atomic_load(&pending) > 0) usleep(200);
    return 0;
}

int cudaEventCreate(void **event) {
    atomic_fetch_add(&allocations, 1);
    return (*event = calloc(1, sizeof(struct timespec))) == NULL ? 2 : 0;
}

int cudaEventDestroy(void *event) { return cudaFree(event); }

int cudaEventRecord(void *event, void *stream) {
    int code = cudaStreamSynchronize(stream);
    clock_gettime(CLOCK_MONOTONIC, event);
    return code;
}

int cudaEventSynchronize(void *event) { return event == NULL; }

int cudaEventElapsedTime(float *milliseconds, void *start, void *end) {
    const struct timespec *a = start, *b = end;
    *milliseconds = (b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6;
    return 0;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 0) return 1;
    switch (attribute) {
    case 75: *value = getenv("FAKE_CUDA_MAJOR") ? atoi(getenv("FAKE_CUDA_MAJOR")) : 8; return 0;
    case 76: *value = getenv("FAKE_CUDA_MAJOR") ? 0 : 7; return 0;
    case 18: *value = 1; return 0;
    default: return 1;
    }
}
