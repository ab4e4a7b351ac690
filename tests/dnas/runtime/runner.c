/* Runs a profile of a packed net: runner FILE PROFILE < inputs > outputs, both raw fp32. Its status is that of the net. */
#include "runtime.c"

#include <stdio.h>
#include <stdlib.h>

enum { MEMORY = 1 << 26, LARGEST_FILE = 1 << 24 };

int main(int count, char **words) {
    FILE *file = count == 3 ? fopen(words[1], "rb") : NULL;
    if (file == NULL) return 100;
    uint8_t *data = malloc(LARGEST_FILE), *memory = malloc(MEMORY);
    size_t size = fread(data, 1, LARGEST_FILE, file);
    dnas_net *net;
    int status = dnas_load(&net, data, size, memory, MEMORY);
    if (status == DNAS_OK) status = dnas_switch(net, words[2]);
    if (status != DNAS_OK) return status;
    size_t inputs = dnas_input_size(net), outputs = dnas_output_size(net);
    float *x = malloc(inputs * sizeof *x), *y = malloc(outputs * sizeof *y);
    while (fread(x, sizeof *x, inputs, stdin) == inputs) {
        if (dnas_run(net, x, 1, y) != DNAS_OK || fwrite(y, sizeof *y, outputs, stdout) != outputs) return 101;
    }
    return 0;
}
