/* Loads, switches and runs many changed copies of packed nets; a sanitizer ends it at the first wrong access.
 * fuzz SEED COUNT FILE...: prints how many copies were loaded and how many ended in each status. */
#include "runtime.c"

#include <stdio.h>
#include <stdlib.h>

enum { MEMORY = 1 << 20 };
static uint64_t state;

static uint64_t drawn(uint64_t below) { /* splitmix64 */
    uint64_t z = state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return below == 0 ? 0 : (z ^ z >> 31) % below;
}

/* One to four changes: in the header mostly, to bytes that are there elsewhere, to extremes, or to anything. */
static size_t change(uint8_t *data, size_t size) {
    size_t header = size < HEADER_BYTES ? size : HEADER_BYTES;
    uint32_t length = 0;
    if (size >= HEADER_BYTES) memcpy(&length, data + 12, 4);
    for (uint64_t left = 1 + drawn(4); left > 0 && size > 0; left--) {
        size_t within = length < size - header ? length : size - header;
        size_t at = drawn(8) == 0 ? drawn(size) : header + drawn(within);
        at = at < size ? at : size - 1;
        switch (drawn(7)) {
            case 0: data[at] = (uint8_t)drawn(256); break;
            case 1: data[at] ^= (uint8_t)(1u << drawn(8)); break;
            case 2: data[at] = data[drawn(size)]; break;
            case 3: data[at] = (uint8_t)(drawn(2) ? 255 : 0); break;
            case 4: data[at] = (uint8_t)drawn(12); break;
            case 5: memmove(data + at, data + drawn(size - at < 2 ? 1 : at), size - at < 8 ? size - at : 8); break;
            default: size = drawn(6) == 0 ? drawn(size + 1) : size; break;
        }
    }
    return size;
}

static double work_of(const dnas_net *net) {
    double total = 0;
    for (size_t at = 0; at < net->step_count; at++) {
        const Layer *layer = net->steps[at].layer;
        double outputs = (double)size_of(&net->slots[at + 1].shape);
        total += layer == NULL ? outputs : outputs * (double)layer->window * 64;
        if (net->steps[at].kind == POOL) total += outputs * (double)size_of(&net->slots[net->steps[at].inputs[0]].shape);
    }
    return total;
}

static void run(dnas_net *net) {
    if (work_of(net) > 1e8) return;
    size_t inputs = dnas_input_size(net), outputs = dnas_output_size(net);
    float *x = malloc(inputs * sizeof *x), *y = malloc(outputs * sizeof *y);
    for (size_t at = 0; at < inputs; at++) x[at] = (float)((int)(at % 7) - 3) / 2;
    dnas_run(net, x, 1, y);
    free(x), free(y);
}

static int try_copy(const uint8_t *data, size_t size, bool changed) {
    size_t given = changed && drawn(8) == 0 ? 1 + drawn(MEMORY / 8) : MEMORY;
    uint8_t *copy = malloc(size), *memory = malloc(given);
    memcpy(copy, data, size);
    size_t left = changed ? change(copy, size) : size;
    uint8_t *exact = malloc(left); /* so that one byte too far is seen */
    if (left > 0) memcpy(exact, copy, left);
    dnas_net *net = NULL;
    int status = dnas_load(&net, exact, left, memory, given);
    if (status == DNAS_OK) {
        run(net);
        static const char *const names[] = {"wide", "small", "default"};
        for (int at = 0; at < 3; at++) {
            if (dnas_switch(net, names[at]) == DNAS_OK) run(net);
        }
    }
    free(copy), free(memory), free(exact);
    return status;
}

int main(int count, char **words) {
    size_t found[DNAS_MEMORY + 1] = {0};
    if (count < 4) return 2;
    for (int at = 3; at < count; at++) {
        FILE *file = fopen(words[at], "rb");
        if (file == NULL) return 2;
        static uint8_t data[1 << 20];
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        if (try_copy(data, size, false) != DNAS_OK) return 3;
        state = strtoull(words[1], NULL, 10) + (uint64_t)at;
        for (long left = strtol(words[2], NULL, 10); left > 0; left--) found[try_copy(data, size, true)]++;
        for (size_t end = 0; end < size; end += 1 + size / 97) { /* and cut off everywhere */
            uint8_t *part = malloc(end + 1);
            memcpy(part, data, end);
            found[try_copy(part, end, false)]++;
            free(part);
        }
    }
    for (int status = 0; status <= DNAS_MEMORY; status++) printf("%s %zu\n", dnas_status_name(status), found[status]);
    return 0;
}
