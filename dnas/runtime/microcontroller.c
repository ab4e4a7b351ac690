/* A packed net on a machine without heap and files: docs/runtime.md. Here it reads its inputs from a host's terminal. */
#include "runtime.c"

#include <stdio.h>

#include "net.h" /* python -m dnas.runtime.embed NET.dnas net.h */

static uint8_t memory[NET_MEMORY];
static float inputs[NET_INPUTS], outputs[NET_OUTPUTS];

int main(void) {
    dnas_net *net;
    int status = dnas_load(&net, net_file, sizeof net_file, memory, sizeof memory);
    for (size_t at = 0; status == DNAS_OK && at < NET_INPUTS; at++) {
        if (scanf("%f", &inputs[at]) != 1) return 1;
    }
    if (status == DNAS_OK) status = dnas_run(net, inputs, 1, outputs);
    for (size_t at = 0; status == DNAS_OK && at < NET_OUTPUTS; at++) printf("%a\n", (double)outputs[at]);
    return status;
}
