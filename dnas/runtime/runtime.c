/* Runs a packed net from its file (docs/packed-format.md) in integer arithmetic, one sample after the other.
 *
 * C11 and the vector extensions of GCC and Clang, no library. Nothing is allocated: the caller gives memory once, a
 * switch to another profile plans and fills it anew. Everything read from the file is checked before it is used, so a
 * damaged or hostile file ends in a status. Compile with -O3 -march=native -ffp-contract=off: results are, bit for bit,
 * those of dnas/export/reference_net.py.
 *
 * Weights of 1 to 7 bits stay bit planes. A product sum over M codes of a window is, for planes w_i and x_j,
 *     sum q_w q_x = sum_ij 2^(i+j) popcount(w_i & x_j)
 * or, where that is more work than a product, the planes are spread to bytes, some filters at a time. Eight filters lie
 * side by side in each 64-byte row of weights, so that one word of a window meets eight filters in one instruction. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(DNAS_PORTABLE) && defined(__AVX2__)
#include <immintrin.h>
#if !defined(__AVX512F__) || !defined(__AVX512VPOPCNTDQ__)
#define HAS_TABLES
#endif
#elif !defined(DNAS_PORTABLE) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

typedef enum {
    DNAS_OK,
    DNAS_NOT_A_NET,     /* the file does not begin as one */
    DNAS_OTHER_VERSION, /* a format that this version does not read */
    DNAS_CUT_OFF,       /* the file is shorter than it says */
    DNAS_DAMAGED,       /* the description makes no sense */
    DNAS_UNSUPPORTED,   /* a layer or an operation that is not run here */
    DNAS_NO_OPERATIONS, /* the file does not tell the network's operations */
    DNAS_NO_PROFILE,    /* there is no profile of this name */
    DNAS_MEMORY         /* more memory is needed than was given */
} dnas_status;

typedef struct dnas_net dnas_net;

const char *dnas_status_name(int status) {
    static const char *const names[] = {"ok",          "not a net",     "other version", "cut off",
                                        "damaged",     "unsupported",   "no operations", "no profile",
                                        "more memory"};
    return status >= 0 && status <= DNAS_MEMORY ? names[status] : "unknown";
}

#define TRY(call)                          \
    do {                                   \
        dnas_status status_ = (call);      \
        if (status_ != DNAS_OK) return status_; \
    } while (0)
#define CHECK(condition, status)           \
    do {                                   \
        if (!(condition)) return (status); \
    } while (0)

/* ---- Memory: a stack on what the caller gave ---- */

typedef struct {
    uint8_t *base;
    size_t size, used;
} Arena;

enum { ALIGNMENT = 64 };
static const size_t LARGEST = (size_t)1 << (sizeof(size_t) > 4 ? 40 : 30); /* of any count or size, in bytes */

/* `count` pieces of `size` bytes, or NULL. */
static void *take(Arena *arena, size_t count, size_t size) {
    if (size != 0 && count > LARGEST / size) return NULL;
    size_t bytes = (count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (bytes > arena->size - arena->used) return NULL;
    void *found = arena->base + arena->used;
    arena->used += bytes;
    return found;
}

static bool multiplied(size_t *total, size_t factor) {
    if (factor != 0 && *total > LARGEST / factor) return false;
    *total *= factor;
    return true;
}

/* ---- The description: a table of values, each behind those that it refers to ---- */

enum { V_NULL, V_FALSE, V_TRUE, V_INTEGER, V_DOUBLE, V_SINGLE, V_TEXT, V_JOINED, V_HEX, V_LIST, V_OBJECT };
typedef uint32_t Node;
#define NONE UINT32_MAX

typedef struct {
    const uint8_t *data;
    size_t size;
    uint32_t *offsets;
    uint32_t count;
} Values;

typedef struct {
    const uint8_t *at, *end;
    bool failed;
} Cursor;

static uint64_t read_number(Cursor *cursor) {
    uint64_t found = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (cursor->at == cursor->end) break;
        uint8_t byte = *cursor->at++;
        found |= (uint64_t)(byte & 127) << shift;
        if (byte < 128) return found;
    }
    cursor->failed = true;
    return 0;
}

static void skip(Cursor *cursor, uint64_t bytes) {
    if (bytes > (uint64_t)(cursor->end - cursor->at)) {
        cursor->failed = true;
    } else {
        cursor->at += bytes;
    }
}

/* A reference, to one of the `limit` values before. */
static Node read_node(Cursor *cursor, uint32_t limit) {
    uint64_t number = read_number(cursor);
    if (number >= limit) cursor->failed = true;
    return cursor->failed ? 0 : (Node)number;
}

static Cursor cursor_at(const Values *values, Node node) {
    Cursor cursor = {values->data + values->offsets[node], values->data + values->size, false};
    return cursor;
}

static int kind_of(const Values *values, Node node) {
    return node == NONE ? -1 : values->data[values->offsets[node]];
}

/* The parts of a list, or the values of an object, one after the other. */
typedef struct {
    Cursor cursor;
    uint64_t left;
    uint32_t limit;
} Items;

static Items items_of(const Values *values, Node node) {
    Items items = {{NULL, NULL, false}, 0, node};
    int kind = kind_of(values, node);
    if (kind != V_LIST && kind != V_OBJECT) return items;
    items.cursor = cursor_at(values, node);
    items.cursor.at++;
    items.left = read_number(&items.cursor);
    if (kind == V_OBJECT) {
        Items keys = items_of(values, items.left < node ? (Node)items.left : NONE);
        items.left = keys.left;
    }
    return items;
}

static bool next(Items *items, Node *node) {
    if (items->left == 0) return false;
    items->left--;
    *node = read_node(&items->cursor, items->limit);
    return !items->cursor.failed;
}

static Node keys_of(const Values *values, Node object) {
    if (kind_of(values, object) != V_OBJECT) return NONE;
    Cursor cursor = cursor_at(values, object);
    cursor.at++;
    return read_node(&cursor, object);
}

static Node item(const Values *values, Node list, size_t index) {
    Items items = items_of(values, list);
    Node node = NONE;
    for (size_t at = 0; at <= index; at++) {
        if (!next(&items, &node)) return NONE;
    }
    return node;
}

/* What is left of `text` behind this value's; NULL where it begins otherwise. */
static const char *matched(const Values *values, Node node, const char *text, int depth) {
    int kind = kind_of(values, node);
    if (depth > 64 || (kind != V_TEXT && kind != V_JOINED)) return NULL;
    Cursor cursor = cursor_at(values, node);
    cursor.at++;
    if (kind == V_JOINED) {
        Node first = read_node(&cursor, node), second = read_node(&cursor, node);
        text = matched(values, first, text, depth + 1);
        return text == NULL ? NULL : matched(values, second, text, depth + 1);
    }
    uint64_t left = read_number(&cursor);
    if (left == 0 && depth > 0) return NULL; /* so that each part of a joined text takes of the text */
    for (; left > 0; left--) {
        if (cursor.at == cursor.end || *text == 0 || *cursor.at != (uint8_t)*text) return NULL;
        cursor.at++, text++;
    }
    return text;
}

static bool text_is(const Values *values, Node node, const char *text) {
    const char *rest = matched(values, node, text, 0);
    return rest != NULL && *rest == 0;
}

/* The value of a key that is given as text, or as the value that it is (a name stands once in a file). */
static Node get(const Values *values, Node object, const char *text, Node key) {
    Items keys = items_of(values, keys_of(values, object)), found = items_of(values, object);
    Node name, value;
    while (next(&keys, &name) && next(&found, &value)) {
        if (text == NULL ? name == key : text_is(values, name, text)) return value;
    }
    return NONE;
}

static Node field(const Values *values, Node object, const char *key) { return get(values, object, key, NONE); }
static Node entry(const Values *values, Node object, Node key) { return get(values, object, NULL, key); }

static bool integer(const Values *values, Node node, int64_t *found) {
    if (kind_of(values, node) != V_INTEGER) return false;
    Cursor cursor = cursor_at(values, node);
    cursor.at++;
    uint64_t folded = read_number(&cursor);
    *found = (int64_t)(folded >> 1) ^ -(int64_t)(folded & 1);
    return !cursor.failed;
}

/* An integer from `low` to `high`. */
static bool within(const Values *values, Node node, int64_t low, int64_t high, int64_t *found) {
    return integer(values, node, found) && *found >= low && *found <= high;
}

static bool number(const Values *values, Node node, double *found) {
    int kind = kind_of(values, node);
    int64_t whole;
    if (integer(values, node, &whole)) {
        *found = (double)whole;
        return true;
    }
    if (kind == V_DOUBLE) memcpy(found, values->data + values->offsets[node] + 1, 8);
    if (kind == V_SINGLE) {
        float single;
        memcpy(&single, values->data + values->offsets[node] + 1, 4);
        *found = (double)single;
    }
    return kind == V_DOUBLE || kind == V_SINGLE;
}

static bool is_true(const Values *values, Node node) { return kind_of(values, node) == V_TRUE; }

/* Whether the value at the cursor is whole and refers to earlier ones alone; the cursor goes behind it. */
static bool is_sound(const Values *values, Cursor *cursor, uint32_t index) {
    if (cursor->at == cursor->end) return false;
    int kind = *cursor->at++;
    uint64_t parts = 0;
    if (kind == V_INTEGER) read_number(cursor);
    if (kind == V_DOUBLE || kind == V_SINGLE) skip(cursor, kind == V_DOUBLE ? 8 : 4);
    if (kind == V_TEXT || kind == V_HEX) skip(cursor, read_number(cursor));
    if (kind == V_JOINED) parts = 2;
    if (kind == V_LIST) parts = read_number(cursor);
    if (kind == V_OBJECT) {
        Node keys = read_node(cursor, index);
        if (cursor->failed || kind_of(values, keys) != V_LIST) return false;
        parts = items_of(values, keys).left;
    }
    for (; parts > 0 && !cursor->failed; parts--) read_node(cursor, index);
    return kind <= V_OBJECT && !cursor->failed;
}

static dnas_status index_values(Values *values, Arena *arena) {
    CHECK(values->count > 0 && values->count <= values->size, DNAS_DAMAGED);
    values->offsets = take(arena, values->count, sizeof(uint32_t));
    CHECK(values->offsets != NULL, DNAS_MEMORY);
    Cursor cursor = {values->data, values->data + values->size, false};
    for (uint32_t index = 0; index < values->count; index++) {
        values->offsets[index] = (uint32_t)(cursor.at - values->data);
        CHECK(is_sound(values, &cursor, index), DNAS_DAMAGED);
    }
    return DNAS_OK;
}

/* ---- The net ---- */

enum { AXES = 3, MOST_STEPS = 2048, MOST_TENSORS = 65536, MOST_SIZE = 1 << 24, MOST_WINDOW = 1 << 22 };

typedef struct {
    Node name;
    const uint8_t *data;
    size_t bytes, rows; /* rows: its first dimension */
    bool is_float;
} Tensor;

/* Channels and three axes of space, of which some have size 1; `axes` are those that PyTorch has, with channels. */
typedef struct {
    size_t axes, channels, space[AXES];
} Shape;

typedef struct {
    Shape shape;
    float *data; /* positions in row-major order, the channels of each side by side */
    size_t offset, bytes, first, last, readers, same_as;
    bool is_kept; /* a parameter, filled once */
} Value;

/* What a profile uses of a stored tensor as a matrix; NULL: all rows, or columns. */
typedef struct {
    size_t rows, columns, stored_rows, stored_columns;
    uint32_t *row, *column;
} Part;

typedef enum { PLANES, TABLES, BYTES, DEPTHWISE, FLOATS } Storage;

typedef struct {
    double step, start;
    float scale, offset, top;
} Grid;

/* Codes of which many are zero: in which format, with how many bits, and what makes them values. */
typedef struct {
    int format, index_bits, bits, dense_bits;
    size_t nonzeros;
    float start, step;
} Sparse;

typedef struct {
    Node name, owner, stored, told, told_input, bias_name;
    Shape in, out;
    size_t kernel[AXES], stride[AXES], dilation[AXES], pad[AXES], taps;
    int mode;
    bool transposed, spreads, spreads_once; /* planes are spread to bytes: for each block, or all of a call */
    size_t groups, group_channels, group_filters, blocks, window, words;
    int32_t *sources[AXES]; /* outputs by taps: the input position, or -1 */
    uint8_t *whole[AXES];   /* outputs: whether all taps are inside */
    bool runs;              /* the taps inside of a row of the window lie side by side */
    Storage storage;
    int weight_bits, input_bits, input_planes;
    Grid weight_grid, input_grid;
    Sparse sparse;
    bool is_quantized, has_input_codes;
    float input_low, input_clip;
    uint64_t *weights;
    size_t weight_words, clips;
    float *clip, *bias;
    int32_t *sums;
    size_t image_bytes, gather_bytes, spread_bytes, positions;
} Layer;

typedef enum {
    LAYER, NORM, ADD, MULTIPLY, CLAMP, SCALE, LEAKY, PRELU, HARDSIGMOID, HARDSWISH, SIGMOID, SILU, TANH,
    POOL, TAKE, CONCATENATE, RESHAPE, ZEROS, PARAMETER, KINDS
} Kind;

static const char *const KIND_NAMES[KINDS] = {
    "layer", "norm", "add", "multiply", "clamp", "scale", "leaky", "prelu", "hardsigmoid", "hardswish", "sigmoid",
    "silu", "tanh", "pool", "take", "concatenate", "reshape", "zeros", "parameter"};

typedef struct {
    Kind kind;
    Node told;
    size_t input_count, *inputs;
    Layer *layer;
    float a, b;           /* clamp: low and high; scale: slope and offset; add: factor; leaky: slope */
    bool has_a, has_b;    /* clamp: whether there is such an end; pool: has_a for "max" */
    float *first, *second; /* norm: scale and shift */
    int32_t *index[AXES + 1], *stop[AXES], *count[AXES]; /* take: indices of channels and axes; pool: starts, stops */
    bool chained; /* runs on the result of the step before, in place */
    size_t other; /* which input is not the one before */
} Step;

struct dnas_net {
    Values values;
    Node description, profile, profile_layers, parts;
    Tensor *tensors;
    size_t tensor_count;
    Arena arena;
    size_t mark;
    Shape input;
    Value *slots;
    Step *steps;
    size_t step_count, output;
    uint8_t *scratch;
    size_t scratch_bytes, kept_bytes;
    bool is_ready;
};

static size_t positions_of(const Shape *shape) { return shape->space[0] * shape->space[1] * shape->space[2]; }
static size_t size_of(const Shape *shape) { return shape->channels * positions_of(shape); }

static bool same_shape(const Shape *a, const Shape *b) {
    return a->channels == b->channels && memcmp(a->space, b->space, sizeof a->space) == 0;
}

/* Up to `most` sizes from a list; their product is a size of memory in fp32. */
static dnas_status read_dimensions(const Values *values, Node list, size_t most, size_t *sizes, size_t *count) {
    Items items = items_of(values, list);
    CHECK(items.left >= 1 && items.left <= most, DNAS_UNSUPPORTED);
    size_t total = sizeof(float);
    *count = (size_t)items.left;
    for (size_t at = 0; at < *count; at++) {
        Node node;
        int64_t size;
        CHECK(next(&items, &node) && within(values, node, 1, MOST_SIZE, &size), DNAS_DAMAGED);
        CHECK(multiplied(&total, (size_t)size), DNAS_MEMORY);
        sizes[at] = (size_t)size;
    }
    return DNAS_OK;
}

static dnas_status read_shape(const Values *values, Node list, Shape *shape) {
    size_t sizes[AXES + 1] = {0}, count;
    TRY(read_dimensions(values, list, AXES + 1, sizes, &count));
    *shape = (Shape){count, sizes[0], {1, 1, 1}};
    for (size_t at = 1; at < count; at++) shape->space[AXES - count + at] = sizes[at];
    return DNAS_OK;
}

/* ---- Tensors ---- */

static dnas_status index_tensors(dnas_net *net, const uint8_t *data, size_t size) {
    const Values *values = &net->values;
    Node table = field(values, net->description, "tensors");
    CHECK(kind_of(values, table) == V_OBJECT, DNAS_DAMAGED);
    Items names = items_of(values, keys_of(values, table)), entries = items_of(values, table);
    CHECK(entries.left <= MOST_TENSORS, DNAS_UNSUPPORTED);
    net->tensor_count = (size_t)entries.left;
    net->tensors = take(&net->arena, net->tensor_count, sizeof(Tensor));
    CHECK(net->tensors != NULL, DNAS_MEMORY);
    Node name, told, node;
    for (size_t at = 0; at < net->tensor_count; at++) {
        CHECK(next(&names, &name) && next(&entries, &told), DNAS_DAMAGED);
        Items parts = items_of(values, told);
        CHECK(next(&parts, &node), DNAS_DAMAGED);
        bool is_float = text_is(values, node, "F32");
        CHECK(is_float || text_is(values, node, "U8"), DNAS_DAMAGED);
        size_t bytes = is_float ? 4 : 1, rows = 1;
        for (bool first = true; next(&parts, &node); first = false) {
            int64_t count;
            CHECK(within(values, node, 0, INT64_C(1) << 40, &count) && multiplied(&bytes, (size_t)count), DNAS_DAMAGED);
            if (first) rows = (size_t)count;
        }
        CHECK(bytes <= size, DNAS_CUT_OFF);
        net->tensors[at] = (Tensor){name, data, bytes, rows, is_float};
        data += bytes, size -= bytes;
    }
    return size == 0 ? DNAS_OK : DNAS_DAMAGED;
}

static const Tensor *tensor_of(const dnas_net *net, Node name) {
    for (size_t at = 0; name != NONE && at < net->tensor_count; at++) {
        if (net->tensors[at].name == name) return &net->tensors[at];
    }
    return NULL;
}

static float float_at(const Tensor *tensor, size_t index) {
    float found;
    memcpy(&found, tensor->data + 4 * index, 4);
    return found;
}

/* Indices below `limit` from a list, on the arena; NULL for null. */
static dnas_status read_indices(dnas_net *net, Node list, size_t limit, size_t *count, uint32_t **indices) {
    *indices = NULL;
    if (kind_of(&net->values, list) == V_NULL) return DNAS_OK;
    CHECK(kind_of(&net->values, list) == V_LIST, DNAS_DAMAGED);
    Items items = items_of(&net->values, list);
    *count = (size_t)items.left;
    *indices = take(&net->arena, *count, sizeof(uint32_t));
    CHECK(*indices != NULL, DNAS_MEMORY);
    for (size_t at = 0; at < *count; at++) {
        Node node;
        int64_t index;
        CHECK(next(&items, &node) && within(&net->values, node, 0, (int64_t)limit - 1, &index), DNAS_DAMAGED);
        (*indices)[at] = (uint32_t)index;
    }
    return DNAS_OK;
}

/* What the profile uses of the tensor `name`, which has `rows` rows of `columns`. */
static dnas_status read_part(dnas_net *net, Node name, size_t rows, size_t columns, Part *part) {
    *part = (Part){rows, columns, rows, columns, NULL, NULL};
    CHECK(rows <= UINT32_MAX && columns <= UINT32_MAX, DNAS_UNSUPPORTED);
    Node told = entry(&net->values, net->parts, name);
    if (told == NONE) return DNAS_OK;
    TRY(read_indices(net, field(&net->values, told, "rows"), rows, &part->rows, &part->row));
    return read_indices(net, field(&net->values, told, "columns"), columns, &part->columns, &part->column);
}

static size_t stored_index(const Part *part, size_t row, size_t column) {
    size_t stored_row = part->row == NULL ? row : part->row[row];
    return stored_row * part->stored_columns + (part->column == NULL ? column : part->column[column]);
}

/* The `count` numbers that the profile uses of a vector of fp32; they stay on the arena. */
static dnas_status read_vector(dnas_net *net, Node name, size_t count, float **found) {
    const Tensor *tensor = tensor_of(net, name);
    CHECK(tensor != NULL && tensor->is_float, DNAS_DAMAGED);
    *found = take(&net->arena, count, sizeof(float));
    CHECK(*found != NULL, DNAS_MEMORY);
    size_t mark = net->arena.used;
    Part part;
    TRY(read_part(net, name, tensor->bytes / 4, 1, &part));
    CHECK(part.rows == count && part.columns == 1, DNAS_DAMAGED);
    for (size_t at = 0; at < count; at++) (*found)[at] = float_at(tensor, stored_index(&part, at, 0));
    net->arena.used = mark;
    return DNAS_OK;
}

/* ---- Layers: what the file says of one ---- */

static dnas_status read_sizes(const Values *values, Node list, size_t axes, int64_t low, size_t *found) {
    Items items = items_of(values, list);
    CHECK(items.left == axes, DNAS_DAMAGED);
    for (size_t at = 0; at < axes; at++) {
        Node node;
        int64_t size;
        CHECK(next(&items, &node) && within(values, node, low, 1 << 20, &size), DNAS_DAMAGED);
        found[AXES - axes + at] = (size_t)size;
    }
    return DNAS_OK;
}

static dnas_status read_grid(const Values *values, Node told, int bits, Grid *grid) {
    double scale, offset, top;
    CHECK(number(values, field(values, told, "scale"), &scale), DNAS_DAMAGED);
    CHECK(number(values, field(values, told, "offset"), &offset), DNAS_DAMAGED);
    CHECK(number(values, field(values, told, "top"), &top), DNAS_DAMAGED);
    CHECK(number(values, field(values, told, "step"), &grid->step), DNAS_DAMAGED);
    CHECK(number(values, field(values, told, "start"), &grid->start), DNAS_DAMAGED);
    CHECK(top >= 0 && top < (double)(1 << bits), DNAS_DAMAGED);
    grid->scale = (float)scale, grid->offset = (float)offset, grid->top = (float)top;
    return DNAS_OK;
}

static dnas_status read_bits(const Values *values, Node told, int *bits) {
    int64_t found;
    CHECK(within(values, field(values, told, "bits"), 1, 16, &found), DNAS_UNSUPPORTED);
    *bits = (int)found;
    return DNAS_OK;
}

enum { MODE_ZEROS, MODE_REFLECT, MODE_REPLICATE, MODE_CIRCULAR };

static dnas_status read_mode(const Values *values, Node geometry, int *mode) {
    static const char *const names[] = {"zeros", "reflect", "replicate", "circular"};
    Node told = field(values, geometry, "padding_mode");
    for (*mode = 0; *mode < 4; (*mode)++) {
        if (told == NONE || text_is(values, told, names[*mode])) return DNAS_OK;
    }
    return DNAS_UNSUPPORTED;
}

static dnas_status read_padding(const Values *values, Node told, size_t axes, Layer *layer) {
    if (text_is(values, told, "valid")) return DNAS_OK;
    if (!text_is(values, told, "same")) return read_sizes(values, told, axes, 0, layer->pad);
    for (int axis = 0; axis < AXES; axis++) layer->pad[axis] = layer->dilation[axis] * (layer->kernel[axis] - 1) / 2;
    return DNAS_OK;
}

/* Groups, channels and filters from the shape of the weight in this profile: that of its part, or that stored. */
static dnas_status read_channels(const dnas_net *net, Layer *layer, Node described, size_t axes, size_t *stored) {
    const Values *values = &net->values;
    size_t sizes[AXES + 2] = {0}, whole[AXES + 2] = {0}, count, whole_count;
    Node told = entry(values, net->parts, field(values, layer->stored, "tensor"));
    TRY(read_dimensions(values, field(values, described, "shape"), AXES + 2, whole, &whole_count));
    TRY(read_dimensions(values, field(values, told == NONE ? described : told, "shape"), AXES + 2, sizes, &count));
    CHECK(count == axes + 2 && whole_count == count, DNAS_DAMAGED);
    size_t first = sizes[0], second = sizes[1];
    CHECK(first % layer->groups == 0, DNAS_DAMAGED);
    layer->group_filters = layer->transposed ? second : first / layer->groups;
    layer->group_channels = layer->transposed ? first / layer->groups : second;
    layer->taps = 1;
    for (size_t at = 0; at < axes; at++) {
        layer->kernel[AXES - axes + at] = sizes[2 + at];
        CHECK(multiplied(&layer->taps, sizes[2 + at]), DNAS_UNSUPPORTED);
    }
    layer->window = layer->taps;
    CHECK(multiplied(&layer->window, layer->group_channels) && layer->window <= MOST_WINDOW, DNAS_UNSUPPORTED);
    CHECK(layer->in.channels == layer->groups * layer->group_channels, DNAS_DAMAGED);
    CHECK(layer->out.channels == layer->groups * layer->group_filters, DNAS_DAMAGED);
    stored[0] = whole[0], stored[1] = 1;
    for (size_t at = 1; at < count; at++) stored[1] *= whole[at];
    return DNAS_OK;
}

static dnas_status read_geometry(dnas_net *net, Layer *layer, Node described, Node chosen, size_t *stored) {
    static const char *const kinds[] = {"Linear",          "Conv1d",          "Conv2d",         "Conv3d",
                                        "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"};
    const Values *values = &net->values;
    Node geometry = field(values, described, "geometry"), kind = field(values, described, "kind");
    CHECK(is_true(values, field(values, geometry, "standard")), DNAS_UNSUPPORTED);
    size_t which = 0;
    while (which < 7 && !text_is(values, kind, kinds[which])) which++;
    CHECK(which < 7, DNAS_UNSUPPORTED);
    size_t axes = which > 3 ? which - 3 : which;
    layer->transposed = which > 3, layer->groups = 1;
    for (int axis = 0; axis < AXES; axis++) layer->kernel[axis] = layer->stride[axis] = layer->dilation[axis] = 1;
    CHECK(layer->in.axes == axes + 1 && layer->out.axes == axes + 1, DNAS_DAMAGED);
    if (axes == 0) return read_channels(net, layer, described, axes, stored);
    int64_t groups;
    Node own = field(values, chosen, "groups");
    CHECK(within(values, own == NONE ? field(values, geometry, "groups") : own, 1, MOST_SIZE, &groups), DNAS_DAMAGED);
    layer->groups = (size_t)groups;
    TRY(read_channels(net, layer, described, axes, stored));
    TRY(read_sizes(values, field(values, geometry, "stride"), axes, 1, layer->stride));
    TRY(read_sizes(values, field(values, geometry, "dilation"), axes, 1, layer->dilation));
    TRY(read_padding(values, field(values, geometry, "padding"), axes, layer));
    return read_mode(values, geometry, &layer->mode);
}

/* Where position `at` of an axis of `size` is read, in padding too; -1 for a zero. */
static int64_t padded(int64_t at, int64_t size, int mode) {
    if (mode == MODE_REFLECT) at = at < 0 ? -at : at >= size ? 2 * (size - 1) - at : at;
    if (mode == MODE_REPLICATE) at = at < 0 ? 0 : at >= size ? size - 1 : at;
    if (mode == MODE_CIRCULAR) at = at < 0 ? at + size : at >= size ? at - size : at;
    return at >= 0 && at < size ? at : -1;
}

/* Which position of an axis output `at` reads at its tap; the taps of a transposed layer are in reverse order. */
static int64_t source_of(const Layer *layer, int axis, size_t at, size_t tap) {
    int64_t size = (int64_t)layer->in.space[axis], pad = (int64_t)layer->pad[axis];
    int64_t stride = (int64_t)layer->stride[axis], dilation = (int64_t)layer->dilation[axis];
    if (!layer->transposed) return padded((int64_t)at * stride - pad + (int64_t)tap * dilation, size, layer->mode);
    int64_t spread = (int64_t)at + pad - (int64_t)(layer->kernel[axis] - 1 - tap) * dilation;
    return spread >= 0 && spread % stride == 0 && spread / stride < size ? spread / stride : -1;
}

static dnas_status plan_sources(dnas_net *net, Layer *layer) {
    for (int axis = 0; axis < AXES; axis++) {
        size_t outputs = layer->out.space[axis], taps = layer->kernel[axis];
        CHECK(taps <= LARGEST / outputs, DNAS_MEMORY);
        layer->sources[axis] = take(&net->arena, outputs * taps, sizeof(int32_t));
        layer->whole[axis] = take(&net->arena, outputs, 1);
        CHECK(layer->sources[axis] != NULL && layer->whole[axis] != NULL, DNAS_MEMORY);
        for (size_t at = 0; at < outputs; at++) {
            layer->whole[axis][at] = 1;
            for (size_t tap = 0; tap < taps; tap++) {
                int64_t source = source_of(layer, axis, at, tap);
                layer->sources[axis][at * taps + tap] = (int32_t)source;
                if (source < 0) layer->whole[axis][at] = 0;
            }
        }
    }
    layer->runs = layer->groups == 1 && layer->dilation[2] == 1 && !layer->transposed && layer->mode == MODE_ZEROS;
    return DNAS_OK;
}

/* Plane pairs up to which counting bits is quicker than products of bytes, channels from which their planes fill
 * words, and planes of weights up to which tables are quicker than both; measured, see benchmarks/README.md. */
#ifdef HAS_TABLES
enum { MOST_PAIRS = 1, MOST_TABLES = 3 };
#else
enum { MOST_PAIRS = 6, MOST_TABLES = 0 };
#endif
enum { LEAST_CHANNELS = 64, SPREAD_AT_ONCE = 1 << 18 };
enum { OCTET = 8, FILTERS = 32, LOOKED = 4, MOST_LOOKED_BITS = 5 }; /* of tables: see below */
enum { MOST_DEPTHWISE = 1 << 15 }; /* taps whose products of bytes fit into 32 bits */
enum { SIDE = 8, TILE = 8, MOST_POSITIONS = 64, GATHERED_BYTES = 49152 };

static size_t divided_up(size_t count, size_t by) { return (count + by - 1) / by; }

/* Whether looking sums up is the quickest, where channels and filters fill the tables and the vectors well enough. */
static bool is_looked_up(const Layer *layer) {
    size_t filled = divided_up(layer->group_filters, FILTERS) * FILTERS * divided_up(layer->group_channels, OCTET) * OCTET;
    return layer->input_bits <= MOST_LOOKED_BITS && layer->group_channels >= 2 * OCTET &&
           (size_t)layer->weight_bits * filled <= MOST_TABLES * layer->group_filters * layer->group_channels;
}

/* Bytes of the tables of one position and group, or of its plane of 32 filters. */
static size_t table_bytes(const Layer *layer) { return divided_up(layer->group_channels, OCTET) * FILTERS; }

/* A layer whose sums are looked up: 32 filters side by side, tables for each input position, and where they lie. */
static dnas_status plan_tables(Layer *layer) {
    size_t inside = positions_of(&layer->in), row = table_bytes(layer), rows = layer->groups;
    layer->storage = TABLES;
    layer->blocks = divided_up(layer->group_filters, FILTERS) * (FILTERS / SIDE);
    layer->weight_words = row / 8 * layer->taps;
    CHECK(multiplied(&layer->weight_words, layer->groups * layer->blocks / (FILTERS / SIDE)), DNAS_MEMORY);
    CHECK(multiplied(&layer->weight_words, (size_t)layer->weight_bits), DNAS_MEMORY);
    CHECK(multiplied(&rows, inside), DNAS_MEMORY);
    layer->image_bytes = row;
    CHECK(multiplied(&layer->image_bytes, rows + 2), DNAS_MEMORY);
    layer->image_bytes = divided_up(layer->image_bytes + rows * sizeof(int32_t), ALIGNMENT) * ALIGNMENT;
    layer->positions = GATHERED_BYTES / (2 * layer->taps * sizeof(void *)) / TILE * TILE;
    if (layer->positions < TILE) layer->positions = TILE;
    if (layer->positions > MOST_POSITIONS) layer->positions = MOST_POSITIONS;
    layer->gather_bytes = divided_up(layer->positions * 2 * layer->taps * sizeof(void *), ALIGNMENT) * ALIGNMENT;
    return DNAS_OK;
}

/* How the weight is kept and multiplied, and the memory that a call needs. */
static dnas_status plan_storage(Layer *layer) {
    size_t inside = positions_of(&layer->in), per_position;
    bool bytes = layer->is_quantized && layer->weight_bits <= 8 && layer->has_input_codes && layer->input_bits <= 8;
    bool depthwise = bytes && layer->group_channels == 1 && layer->group_filters == 1 && layer->taps <= MOST_DEPTHWISE;
    bool planes = bytes && !depthwise && layer->weight_bits < 8;
    if (planes && is_looked_up(layer)) return plan_tables(layer);
    layer->storage = planes ? PLANES : depthwise ? DEPTHWISE : bytes ? BYTES : FLOATS;
    layer->spreads = planes && (layer->weight_bits * layer->input_bits > MOST_PAIRS ||
                                (layer->group_channels < LEAST_CHANNELS && layer->taps > 1));
    layer->input_planes = planes && !layer->spreads ? layer->input_bits : 1;
    layer->blocks = divided_up(layer->group_filters, SIDE);
    size_t rows = layer->groups * layer->blocks, bits = planes ? (size_t)layer->weight_bits : 1;
    layer->words = divided_up(layer->window, planes ? 64 : 8);
    size_t used = planes && !layer->spreads ? layer->words : divided_up(layer->window, 8);
    layer->weight_words = layer->storage == FLOATS ? layer->window * SIDE / 2 : layer->words * SIDE;
    CHECK(multiplied(&layer->weight_words, rows) && multiplied(&layer->weight_words, bits), DNAS_MEMORY);
    if (depthwise) layer->weight_words = divided_up(layer->taps * layer->in.channels, 8);
    layer->image_bytes = planes && !layer->spreads
                             ? divided_up(layer->group_channels, 64) * 8 * layer->groups * (size_t)layer->input_planes
                             : layer->in.channels;
    CHECK(multiplied(&layer->image_bytes, inside), DNAS_MEMORY);
    layer->image_bytes = divided_up(layer->image_bytes, ALIGNMENT) * ALIGNMENT;
    per_position = layer->storage == FLOATS ? 2 * layer->window * sizeof(double)
                                            : ((size_t)layer->input_planes + 1) * used * 8;
    layer->positions = layer->spreads ? MOST_POSITIONS : GATHERED_BYTES / per_position / TILE * TILE;
    if (layer->positions < TILE) layer->positions = TILE;
    if (layer->positions > MOST_POSITIONS) layer->positions = MOST_POSITIONS;
    layer->gather_bytes = depthwise ? 0 : divided_up(layer->positions * per_position, ALIGNMENT) * ALIGNMENT;
    size_t all = rows * used;
    layer->spreads_once = layer->spreads && all <= SPREAD_AT_ONCE / (SIDE * 8);
    layer->spread_bytes = layer->spreads ? (layer->spreads_once ? all : used) * SIDE * 8 : 0;
    return DNAS_OK;
}

enum { NOT_SPARSE, DENSE, BITMASK, CSR, RELATIVE, LEAST_INDEX_BITS = 2, MOST_INDEX_BITS = 16 };

static dnas_status read_sparse(dnas_net *net, Layer *layer) {
    static const char *const formats[] = {
        "dense",       "bitmask",     "csr",         "relative-2",  "relative-3",  "relative-4",
        "relative-5",  "relative-6",  "relative-7",  "relative-8",  "relative-9",  "relative-10",
        "relative-11", "relative-12", "relative-13", "relative-14", "relative-15", "relative-16"};
    enum { FORMATS = sizeof formats / sizeof *formats };
    const Values *values = &net->values;
    Node stored = layer->stored, format = field(values, stored, "storage");
    int64_t bits, dense_bits, nonzeros;
    float *levels;
    size_t mark = net->arena.used;
    int which = 0;
    while (which < FORMATS && !text_is(values, format, formats[which])) which++;
    CHECK(which < FORMATS, DNAS_UNSUPPORTED);
    CHECK(within(values, field(values, stored, "bits"), 1, 8, &bits), DNAS_DAMAGED);
    CHECK(within(values, field(values, stored, "dense_bits"), bits, bits + 1, &dense_bits), DNAS_DAMAGED);
    CHECK(within(values, field(values, stored, "nonzeros"), 0, (int64_t)LARGEST, &nonzeros), DNAS_DAMAGED);
    TRY(read_vector(net, field(values, layer->told, "levels"), 2, &levels));
    int known = which + DENSE < RELATIVE ? which + DENSE : RELATIVE;
    int index_bits = which + DENSE - RELATIVE + LEAST_INDEX_BITS;
    layer->sparse = (Sparse){known, index_bits, (int)bits, (int)dense_bits, (size_t)nonzeros, levels[0], levels[1]};
    net->arena.used = mark;
    return DNAS_OK;
}

static dnas_status read_weight_told(dnas_net *net, Layer *layer) {
    const Values *values = &net->values;
    Node storage = field(values, layer->stored, "storage");
    bool planes = text_is(values, storage, "planes");
    layer->clips = 0;
    if (!planes && !text_is(values, storage, "float32")) return read_sparse(net, layer);
    layer->is_quantized = kind_of(values, layer->told) != V_NULL;
    if (!layer->is_quantized) return planes ? DNAS_DAMAGED : DNAS_OK;
    CHECK(planes || field(values, layer->told, "transform") == NONE, DNAS_UNSUPPORTED);
    TRY(read_bits(values, layer->told, &layer->weight_bits));
    TRY(read_grid(values, field(values, layer->told, "grid"), layer->weight_bits, &layer->weight_grid));
    Node axis = field(values, layer->stored, "axis");
    layer->clips = kind_of(values, axis) == V_NULL ? 1 : layer->transposed ? layer->group_filters : layer->out.channels;
    return read_vector(net, field(values, layer->told, "clip"), layer->clips, &layer->clip);
}

static dnas_status read_input_told(dnas_net *net, Layer *layer) {
    const Values *values = &net->values;
    Node told = layer->told_input;
    layer->has_input_codes = kind_of(values, told) != V_NULL;
    if (!layer->has_input_codes) return DNAS_OK;
    float *clip;
    size_t mark = net->arena.used;
    TRY(read_bits(values, told, &layer->input_bits));
    TRY(read_grid(values, field(values, told, "grid"), layer->input_bits, &layer->input_grid));
    layer->input_low = is_true(values, field(values, told, "signed")) ? -1.0f : 0.0f;
    TRY(read_vector(net, field(values, told, "clip"), 1, &clip));
    layer->input_clip = *clip;
    net->arena.used = mark;
    return DNAS_OK;
}

/* The memory of a weight: an earlier layer's, where it is the same one. */
static dnas_status plan_weights(dnas_net *net, Layer *layer, size_t step) {
    for (size_t at = 0; at < step; at++) {
        const Layer *other = net->steps[at].layer;
        if (other == NULL || other->owner != layer->owner || other->told != layer->told) continue;
        if (other->storage != layer->storage || other->weight_words != layer->weight_words) continue;
        if (other->groups != layer->groups || other->group_channels != layer->group_channels) continue;
        if (memcmp(other->kernel, layer->kernel, sizeof layer->kernel) || other->transposed != layer->transposed) continue;
        layer->weights = other->weights, layer->sums = other->sums;
        return DNAS_OK;
    }
    layer->weights = take(&net->arena, layer->weight_words, 8);
    layer->sums = take(&net->arena, layer->groups * layer->blocks * SIDE, sizeof(int32_t));
    return layer->weights == NULL || layer->sums == NULL ? DNAS_MEMORY : DNAS_OK;
}

static dnas_status plan_layer(dnas_net *net, Step *step, size_t index) {
    const Values *values = &net->values;
    Layer *layer = take(&net->arena, 1, sizeof(Layer));
    CHECK(layer != NULL, DNAS_MEMORY);
    memset(layer, 0, sizeof *layer);
    CHECK(step->input_count == 1, DNAS_DAMAGED);
    layer->in = net->slots[step->inputs[0]].shape, layer->out = net->slots[index + 1].shape;
    layer->name = layer->owner = field(values, step->told, "name");
    Node layers = field(values, net->description, "layers");
    Node described = entry(values, layers, layer->name), chosen = entry(values, net->profile_layers, layer->name);
    layer->stored = field(values, described, "weight");
    if (text_is(values, field(values, layer->stored, "storage"), "shared")) {
        layer->owner = field(values, layer->stored, "layer");
        described = entry(values, layers, layer->owner);
        layer->stored = field(values, described, "weight");
    }
    CHECK(described != NONE && chosen != NONE, DNAS_DAMAGED);
    layer->told = field(values, chosen, "weight"), layer->told_input = field(values, chosen, "input");
    size_t stored[2];
    Node own = entry(values, layers, layer->name);
    TRY(read_geometry(net, layer, own, chosen, stored));
    TRY(read_weight_told(net, layer));
    TRY(read_input_told(net, layer));
    TRY(plan_sources(net, layer));
    TRY(plan_storage(layer));
    layer->bias_name = field(values, own, "bias");
    if (kind_of(values, layer->bias_name) != V_NULL) {
        TRY(read_vector(net, layer->bias_name, layer->out.channels, &layer->bias));
    }
    TRY(plan_weights(net, layer, index));
    size_t scratch = layer->image_bytes + layer->gather_bytes + layer->spread_bytes;
    if (scratch > net->scratch_bytes) net->scratch_bytes = scratch;
    step->layer = layer;
    return DNAS_OK;
}

/* ---- Layers: weights from the file into memory ---- */

typedef struct {
    const Tensor *tensor;
    Part part;
    bool planes;
    size_t plane_bytes;
} Source;

static dnas_status open_weight(dnas_net *net, const Layer *layer, Source *source) {
    const Values *values = &net->values;
    Node name = field(values, layer->stored, "tensor");
    size_t whole[AXES + 2] = {0}, count, columns = 1;
    Node described = entry(values, field(values, net->description, "layers"), layer->owner);
    TRY(read_dimensions(values, field(values, described, "shape"), AXES + 2, whole, &count));
    for (size_t at = 1; at < count; at++) columns *= whole[at];
    source->tensor = tensor_of(net, name);
    source->planes = text_is(values, field(values, layer->stored, "storage"), "planes");
    source->plane_bytes = divided_up(whole[0] * columns, 8);
    bool sparse = layer->sparse.format != NOT_SPARSE;
    CHECK(source->tensor != NULL && source->tensor->is_float != (source->planes || sparse), DNAS_DAMAGED);
    size_t needed = source->planes ? source->plane_bytes * (size_t)layer->weight_bits : 4 * whole[0] * columns;
    CHECK(sparse || source->tensor->bytes >= needed, DNAS_DAMAGED);
    CHECK(!source->planes || source->tensor->bytes == source->tensor->rows * source->plane_bytes, DNAS_DAMAGED);
    TRY(read_part(net, name, whole[0], columns, &source->part));
    CHECK(!sparse || (source->part.row == NULL && source->part.column == NULL), DNAS_UNSUPPORTED);
    size_t used = layer->transposed ? layer->in.channels : layer->out.channels;
    size_t across = (layer->transposed ? layer->group_filters : layer->group_channels) * layer->taps;
    return source->part.rows == used && source->part.columns == across ? DNAS_OK : DNAS_DAMAGED;
}

/* Places of a weight: filter `f` of group `g`, input channel `c` of the group, tap. */
static size_t place_of(const Layer *layer, const Source *source, size_t g, size_t f, size_t c, size_t tap) {
    if (layer->transposed) {
        return stored_index(&source->part, g * layer->group_channels + c, f * layer->taps + layer->taps - 1 - tap);
    }
    return stored_index(&source->part, g * layer->group_filters + f, c * layer->taps + tap);
}

static size_t clip_index(const Layer *layer, size_t g, size_t f) {
    if (layer->clips == 1) return 0;
    return layer->transposed ? f : g * layer->group_filters + f;
}

static uint32_t encoded(float u, float low, const Grid *grid) {
    u = u > low ? u : low;
    u = u < 1.0f ? u : 1.0f;
    u = u * grid->scale + grid->offset;
    u = u > 0.0f ? u : 0.0f;
    u = u < grid->top ? u : grid->top;
    return (uint32_t)(int32_t)u;
}

static uint32_t code_at(const Layer *layer, const Source *source, size_t place, size_t clip) {
    if (!source->planes) return encoded(float_at(source->tensor, place) / layer->clip[clip], -1.0f, &layer->weight_grid);
    uint32_t code = 0;
    const uint8_t *byte = source->tensor->data + place / 8;
    for (int plane = 0; plane < layer->weight_bits; plane++, byte += source->plane_bytes) {
        code = 2 * code + (*byte >> (7 - place % 8) & 1);
    }
    return code;
}

/* Bit `plane` of up to 64 codes, the first lowest. */
static uint64_t plane_of(const uint8_t *codes, size_t count, int plane) {
    uint64_t word = 0;
    size_t at = 0;
#if !defined(DNAS_PORTABLE) && defined(__AVX512BW__)
    if (count == 64) return _mm512_test_epi8_mask(_mm512_loadu_si512(codes), _mm512_set1_epi8((char)(1 << plane)));
#elif !defined(DNAS_PORTABLE) && defined(__AVX2__)
    for (; at + 32 <= count; at += 32) {
        __m256i shifted = _mm256_slli_epi16(_mm256_loadu_si256((const __m256i *)(codes + at)), 7 - plane);
        word |= (uint64_t)(uint32_t)_mm256_movemask_epi8(shifted) << at;
    }
#else
    for (; at + 8 <= count; at += 8) {
        uint64_t eight;
        memcpy(&eight, codes + at, 8);
        eight = eight >> plane & UINT64_C(0x0101010101010101);
        word |= (eight * UINT64_C(0x0102040810204080) >> 56) << at;
    }
#endif
    for (; at < count; at++) word |= (uint64_t)(codes[at] >> plane & 1) << at;
    return word;
}

/* The same, as bytes of eight channels' bits: filters f and f + 16 of 32 lie side by side. */
static void store_for_tables(const Layer *layer, size_t g, size_t f, size_t m, const uint8_t *codes, size_t count) {
    size_t row = g * (layer->blocks * SIDE / FILTERS) + f / FILTERS, plane_bytes = table_bytes(layer) * layer->taps;
    size_t side = f % (FILTERS / 2) * 2 + f % FILTERS / (FILTERS / 2);
    uint8_t *bytes = (uint8_t *)layer->weights + row * plane_bytes * (size_t)layer->weight_bits + side;
    for (size_t at = m; at < m + count; at++) {
        size_t c = at % layer->group_channels, place = at / layer->group_channels * table_bytes(layer) + c / OCTET * FILTERS;
        for (int plane = 0; plane < layer->weight_bits; plane++, place += plane_bytes) {
            bytes[place] |= (uint8_t)((codes[at - m] >> plane & 1) << c % OCTET);
        }
    }
}

static bool in_planes(const Layer *layer) { return layer->storage == PLANES && !layer->spreads; }

/* Up to 64 codes of a filter, from position `m` of its window on, into the memory of its layer. */
static void store(const Layer *layer, size_t g, size_t f, size_t m, const uint8_t *codes, size_t count) {
    size_t row = g * layer->blocks + f / SIDE, side = f % SIDE;
    if (layer->storage == TABLES) {
        store_for_tables(layer, g, f, m, codes, count);
        return;
    }
    if (layer->storage == PLANES) {
        uint64_t *word = layer->weights + (row * (size_t)layer->weight_bits * layer->words + m / 64) * SIDE + side;
        for (int plane = 0; plane < layer->weight_bits; plane++, word += layer->words * SIDE) {
            *word = plane_of(codes, count, plane);
        }
        return;
    }
    for (size_t at = 0; at < count; at++) {
        if (layer->storage == BYTES) {
            uint8_t *bytes = (uint8_t *)(layer->weights + (row * layer->words + (m + at) / 8) * SIDE + side);
            bytes[(m + at) % 8] = (uint8_t)(codes[at] ^ 128u); /* less 128, as a signed byte */
        } else {
            ((uint8_t *)layer->weights)[(m + at) * layer->in.channels + g] = codes[at]; /* of a depthwise layer */
        }
    }
}

/* A filter that is kept in fp32, in the order of channels, then taps. */
static void fill_values(const Layer *layer, const Source *source, size_t g, size_t f) {
    float *to = (float *)layer->weights + (g * layer->blocks + f / SIDE) * layer->window * SIDE + f % SIDE;
    size_t clip = layer->is_quantized ? clip_index(layer, g, f) : 0;
    for (size_t m = 0; m < layer->window; m++) {
        size_t place = place_of(layer, source, g, f, m / layer->taps, m % layer->taps);
        to[m * SIDE] = layer->is_quantized ? (float)code_at(layer, source, place, clip) : float_at(source->tensor, place);
    }
}

/* A filter that is kept as codes, in the order of taps, then channels. */
static void fill_codes(const Layer *layer, const Source *source, size_t g, size_t f) {
    size_t clip = clip_index(layer, g, f), c = 0, tap = 0;
    int64_t sum = 0;
    for (size_t m = 0; m < layer->window; m += 64) {
        size_t some = layer->window - m < 64 ? layer->window - m : 64;
        uint8_t codes[64];
        for (size_t at = 0; at < some; at++) {
            codes[at] = (uint8_t)code_at(layer, source, place_of(layer, source, g, f, c, tap), clip);
            sum += codes[at];
            if (++c == layer->group_channels) c = 0, tap++;
        }
        store(layer, g, f, m, codes, some);
    }
    layer->sums[(g * layer->blocks + f / SIDE) * SIDE + f % SIDE] = (int32_t)sum;
}

/* Bits of a tensor, the first the highest of its byte. */
typedef struct {
    const uint8_t *data;
    size_t bits, at;
    bool failed;
} Bits;

static uint64_t take_bits(Bits *bits, int width) {
    uint64_t found = 0;
    if (bits->at > bits->bits || (size_t)width > bits->bits - bits->at) bits->failed = true;
    for (; !bits->failed && width > 0; width--, bits->at++) {
        found = 2 * found + (bits->data[bits->at / 8] >> (7 - bits->at % 8) & 1);
    }
    return found;
}

static int bit_length(size_t number) {
    int length = 0;
    for (; number > 0; number >>= 1) length++;
    return length;
}

/* A code that is not zero (1, 2, 3, 4 for -1, 1, -2, 2), at its place in the stored weight. */
static void put_sparse(const Layer *layer, size_t place, uint64_t symbol) {
    size_t across = (layer->transposed ? layer->group_filters : layer->group_channels) * layer->taps;
    size_t row = place / across, column = place % across;
    size_t g = row / layer->group_filters, f = row % layer->group_filters, m = column;
    if (layer->transposed) {
        g = row / layer->group_channels, f = column / layer->taps;
        m = row % layer->group_channels * layer->taps + layer->taps - 1 - column % layer->taps;
    }
    float size = layer->sparse.start + ((float)((symbol + 1) / 2) - 1.0f) * layer->sparse.step;
    float *to = (float *)layer->weights + (g * layer->blocks + f / SIDE) * layer->window * SIDE + f % SIDE;
    to[m * SIDE] = symbol % 2 ? -size : size;
}

static dnas_status fill_marked(const Layer *layer, Bits index, Bits values, size_t count) {
    size_t left = layer->sparse.nonzeros;
    bool masked = layer->sparse.format == BITMASK;
    values.at = count;
    for (size_t place = 0; place < count; place++) {
        uint64_t symbol = take_bits(&index, masked ? 1 : layer->sparse.dense_bits);
        CHECK(!index.failed, DNAS_DAMAGED);
        if (symbol == 0) continue;
        CHECK(left-- > 0, DNAS_DAMAGED);
        if (masked) symbol = take_bits(&values, layer->sparse.bits) + 1;
        put_sparse(layer, place, symbol);
    }
    return left > 0 || (masked && values.failed) ? DNAS_DAMAGED : DNAS_OK;
}

static dnas_status fill_rows(const Layer *layer, Bits ends, Bits values, size_t rows, size_t columns) {
    int wide = bit_length(rows * columns), narrow = bit_length(columns - 1);
    Bits index = values;
    size_t at = 0, nonzeros = layer->sparse.nonzeros;
    index.at = rows * (size_t)wide, values.at = index.at + nonzeros * (size_t)narrow;
    for (size_t row = 0; row < rows; row++) {
        size_t end = (size_t)take_bits(&ends, wide);
        CHECK(!ends.failed && end <= nonzeros, DNAS_DAMAGED);
        for (; at < end; at++) {
            size_t column = (size_t)take_bits(&index, narrow);
            CHECK(!index.failed && column < columns, DNAS_DAMAGED);
            put_sparse(layer, row * columns + column, take_bits(&values, layer->sparse.bits) + 1);
        }
    }
    return at < nonzeros || values.failed ? DNAS_DAMAGED : DNAS_OK;
}

/* The next code's place, behind the fillers before it; `place` is that of the one before, plus 1. */
static bool next_place(Bits *index, int width, size_t count, size_t *place) {
    uint64_t filler = (UINT64_C(1) << width) - 1, found = filler;
    while (found == filler && !index->failed && *place < count) {
        found = take_bits(index, width);
        *place += (size_t)found;
    }
    return found != filler && !index->failed && *place < count;
}

static dnas_status fill_relative(const Layer *layer, Bits index, Bits values, size_t count) {
    size_t place = 0;
    values.at = 0;
    for (size_t at = 0; at < layer->sparse.nonzeros; at++, place++) { /* to where the values begin */
        CHECK(next_place(&values, layer->sparse.index_bits, count, &place), DNAS_DAMAGED);
    }
    place = 0;
    for (size_t at = 0; at < layer->sparse.nonzeros; at++, place++) {
        CHECK(next_place(&index, layer->sparse.index_bits, count, &place), DNAS_DAMAGED);
        put_sparse(layer, place, take_bits(&values, layer->sparse.bits) + 1);
    }
    return values.failed ? DNAS_DAMAGED : DNAS_OK;
}

/* A sparse weight, as the values that it is in fp32. */
static dnas_status fill_sparse(const Layer *layer, const Source *source) {
    size_t rows = source->part.rows, columns = source->part.columns, count = rows * columns;
    Bits bits = {source->tensor->data, source->tensor->bytes * 8, 0, false};
    CHECK(layer->sparse.nonzeros <= count, DNAS_DAMAGED);
    if (layer->sparse.format == CSR) return fill_rows(layer, bits, bits, rows, columns);
    if (layer->sparse.format == RELATIVE) return fill_relative(layer, bits, bits, count);
    return fill_marked(layer, bits, bits, count);
}

static dnas_status fill_layer(dnas_net *net, const Layer *layer) {
    Source source;
    size_t mark = net->arena.used;
    TRY(open_weight(net, layer, &source));
    memset(layer->weights, 0, layer->weight_words * 8);
    memset(layer->sums, 0, layer->groups * layer->blocks * SIDE * sizeof(int32_t));
    if (layer->sparse.format != NOT_SPARSE) {
        dnas_status status = fill_sparse(layer, &source);
        net->arena.used = mark;
        return status;
    }
    for (size_t g = 0; g < layer->groups; g++) {
        for (size_t f = 0; f < layer->group_filters; f++) {
            (layer->storage == FLOATS ? fill_values : fill_codes)(layer, &source, g, f);
        }
    }
    net->arena.used = mark;
    return DNAS_OK;
}

/* ---- Product sums of eight filters ---- */

#if !defined(DNAS_PORTABLE) && defined(__AVX512F__) && defined(__AVX512VPOPCNTDQ__)
enum { LANES = 8, COUNTED = 1 << 20 };
typedef uint64_t Lanes __attribute__((vector_size(64)));
static inline Lanes add_ones(Lanes total, Lanes bits) { return total + (Lanes)_mm512_popcnt_epi64((__m512i)bits); }
static inline Lanes summed(Lanes total) { return total; }
#elif !defined(DNAS_PORTABLE) && defined(__AVX2__)
enum { LANES = 4, COUNTED = 31 };
typedef uint64_t Lanes __attribute__((vector_size(32)));
/* Ones of each byte, by a table of half bytes. */
static inline Lanes add_ones(Lanes total, Lanes bits) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i half = _mm256_set1_epi8(15);
    __m256i low = _mm256_and_si256((__m256i)bits, half);
    __m256i high = _mm256_and_si256(_mm256_srli_epi16((__m256i)bits, 4), half);
    __m256i ones = _mm256_add_epi8(_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high));
    return (Lanes)_mm256_add_epi8((__m256i)total, ones);
}
static inline Lanes summed(Lanes total) { return (Lanes)_mm256_sad_epu8((__m256i)total, _mm256_setzero_si256()); }
#elif !defined(DNAS_PORTABLE) && defined(__ARM_NEON)
enum { LANES = 2, COUNTED = 31 };
typedef uint64_t Lanes __attribute__((vector_size(16)));
static inline Lanes add_ones(Lanes total, Lanes bits) {
    return (Lanes)vaddq_u8((uint8x16_t)total, vcntq_u8((uint8x16_t)bits));
}
static inline Lanes summed(Lanes total) { return (Lanes)vpaddlq_u32(vpaddlq_u16(vpaddlq_u8((uint8x16_t)total))); }
#else
enum { LANES = 2, COUNTED = 31 };
typedef uint64_t Lanes __attribute__((vector_size(16)));
static inline Lanes add_ones(Lanes total, Lanes bits) {
    bits -= bits >> 1 & UINT64_C(0x5555555555555555);
    bits = (bits & UINT64_C(0x3333333333333333)) + (bits >> 2 & UINT64_C(0x3333333333333333));
    return total + ((bits + (bits >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f));
}
static inline Lanes summed(Lanes total) {
    total = (total & UINT64_C(0x00ff00ff00ff00ff)) + (total >> 8 & UINT64_C(0x00ff00ff00ff00ff));
    total = (total + (total >> 32)) & UINT64_C(0xffffffff);
    return (total & 0xffff) + (total >> 16);
}
#endif

enum { PARTS = SIDE / LANES };
typedef double Doubles __attribute__((vector_size(8 * LANES)));
typedef float Singles __attribute__((vector_size(4 * LANES)));
typedef Lanes Sums[PARTS]; /* of eight filters; never negative in the end */

#define INLINE static inline __attribute__((always_inline))

/* Adds 2^shift popcount(w & x) of `words` words to the sums of `count` windows, which lie `stride` words apart. */
INLINE void add_counts(const uint64_t *w, const uint64_t *x, size_t words, size_t stride, int shift, Sums *sums, int count) {
    for (int part = 0; part < PARTS; part++) {
        for (size_t begin = 0; begin < words; begin += COUNTED) {
            size_t end = words - begin > COUNTED ? begin + COUNTED : words;
            Lanes total[TILE] = {{0}};
            for (size_t m = begin; m < end; m++) {
                Lanes weights;
                memcpy(&weights, w + m * SIDE + part * LANES, sizeof weights);
                for (int t = 0; t < count; t++) total[t] = add_ones(total[t], weights & x[(size_t)t * stride + m]);
            }
            for (int t = 0; t < count; t++) sums[t][part] += summed(total[t]) << shift;
        }
    }
}

/* Adds the products of bytes, signed ones of weights with unsigned ones of windows; `room`: see room_of. */
#if !defined(DNAS_PORTABLE) && defined(__AVX512VNNI__)
INLINE void add_products(const uint64_t *w, const uint64_t *x, size_t words, size_t stride, size_t room, Sums *sums,
                         int count) {
    (void)room;
    __m512i total[TILE];
    for (int t = 0; t < count; t++) total[t] = _mm512_setzero_si512();
    for (size_t m = 0; m < words; m++) {
        __m512i weights = _mm512_loadu_si512(w + m * SIDE);
        for (int t = 0; t < count; t++) {
            total[t] = _mm512_dpbusd_epi32(total[t], _mm512_set1_epi64((int64_t)x[(size_t)t * stride + m]), weights);
        }
    }
    for (int t = 0; t < count; t++) {
        __m512i low = _mm512_srai_epi64(_mm512_slli_epi64(total[t], 32), 32), high = _mm512_srai_epi64(total[t], 32);
        Lanes pairs[PARTS];
        __m512i both = _mm512_add_epi64(low, high);
        memcpy(pairs, &both, sizeof pairs);
        for (int part = 0; part < PARTS; part++) sums[t][part] += pairs[part];
    }
}
#elif !defined(DNAS_PORTABLE) && defined(__AVX2__)
/* In 32 bits: two filters, 16 bytes of weights, as 16 products. */
INLINE void add_wide_products(const uint64_t *w, const uint64_t *x, size_t words, size_t stride, Sums *sums, int count) {
    for (int part = 0; part < SIDE; part += 2) {
        __m256i total[TILE];
        for (int t = 0; t < count; t++) total[t] = _mm256_setzero_si256();
        for (size_t m = 0; m < words; m++) {
            __m256i weights = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(w + m * SIDE + part)));
            for (int t = 0; t < count; t++) {
                __m128i bytes = _mm_set1_epi64x((int64_t)x[(size_t)t * stride + m]);
                total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(weights, _mm256_cvtepu8_epi16(bytes)));
            }
        }
        for (int t = 0; t < count; t++) {
            int32_t parts[8];
            memcpy(parts, &total[t], sizeof parts);
            uint64_t *to = (uint64_t *)sums[t] + part;
            for (int at = 0; at < 8; at++) to[at / 4] += (uint64_t)(int64_t)parts[at];
        }
    }
}

/* In 16 bits, which hold the sums of `room` words: eight filters, 64 bytes of weights, in two halves. */
INLINE void add_narrow_products(const uint64_t *w, const uint64_t *x, size_t words, size_t stride, size_t room, Sums *sums,
                                int count) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i total[TILE / 2][2];
    for (int t = 0; t < count; t++) total[t][0] = total[t][1] = _mm256_setzero_si256();
    for (size_t m = 0; m < words;) {
        size_t end = words - m > room ? m + room : words;
        __m256i some[TILE / 2][2];
        for (int t = 0; t < count; t++) some[t][0] = some[t][1] = _mm256_setzero_si256();
        for (; m < end; m++) {
            __m256i first = _mm256_loadu_si256((const __m256i *)(w + m * SIDE));
            __m256i second = _mm256_loadu_si256((const __m256i *)(w + m * SIDE + SIDE / 2));
            for (int t = 0; t < count; t++) {
                __m256i codes = _mm256_set1_epi64x((int64_t)x[(size_t)t * stride + m]);
                some[t][0] = _mm256_add_epi16(some[t][0], _mm256_maddubs_epi16(codes, first));
                some[t][1] = _mm256_add_epi16(some[t][1], _mm256_maddubs_epi16(codes, second));
            }
        }
        for (int t = 0; t < count; t++) {
            for (int half = 0; half < 2; half++) {
                total[t][half] = _mm256_add_epi32(total[t][half], _mm256_madd_epi16(some[t][half], ones));
            }
        }
    }
    for (int t = 0; t < count; t++) {
        for (int half = 0; half < 2; half++) { /* two numbers of 32 bits as their sum in 64 */
            __m256i both = _mm256_add_epi32(total[t][half], _mm256_shuffle_epi32(total[t][half], 0xf5));
            __m256i sign = _mm256_shuffle_epi32(_mm256_srai_epi32(both, 31), 0xa0);
            uint64_t found[4], *to = (uint64_t *)sums[t] + half * (SIDE / 2);
            both = _mm256_blend_epi32(both, sign, 0xaa);
            memcpy(found, &both, sizeof found);
            for (int at = 0; at < 4; at++) to[at] += found[at];
        }
    }
}

INLINE void add_products(const uint64_t *w, const uint64_t *x, size_t words, size_t stride, size_t room, Sums *sums,
                         int count) {
    if (room == 0) {
        add_wide_products(w, x, words, stride, sums, count);
    } else if (count == TILE) {
        add_narrow_products(w, x, words, stride, room, sums, TILE / 2);
        add_narrow_products(w, x + TILE / 2 * stride, words, stride, room, sums + TILE / 2, TILE / 2);
    } else {
        add_narrow_products(w, x, words, stride, room, sums, 1);
    }
}
#else
INLINE void add_products(const uint64_t *w, const uint64_t *x, size_t words, size_t stride, size_t room, Sums *sums,
                         int count) {
    (void)room;
    typedef int8_t Bytes __attribute__((vector_size(16)));
    typedef uint8_t Codes __attribute__((vector_size(16)));
    typedef int16_t Products __attribute__((vector_size(32)));
    typedef int32_t Totals __attribute__((vector_size(64)));
    for (int part = 0; part < SIDE; part += 2) { /* two filters; a product of bytes fits into 16 bits */
        Totals total[TILE] = {{0}};
        for (size_t m = 0; m < words; m++) {
            Bytes weights;
            memcpy(&weights, w + m * SIDE + part, sizeof weights);
            Products wide = __builtin_convertvector(weights, Products);
            for (int t = 0; t < count; t++) {
                uint64_t twice[2] = {x[(size_t)t * stride + m], x[(size_t)t * stride + m]};
                Codes codes;
                memcpy(&codes, twice, sizeof codes);
                total[t] += __builtin_convertvector(wide * __builtin_convertvector(codes, Products), Totals);
            }
        }
        for (int t = 0; t < count; t++) {
            uint64_t *to = (uint64_t *)sums[t] + part;
            for (int at = 0; at < 16; at++) to[at / 8] += (uint64_t)(int64_t)total[t][at];
        }
    }
}
#endif

enum { MOST_PRODUCTS = 4096 }; /* words of bytes whose products fit into 32 bits */

/* Words of bytes of which 16 bits hold the sums of products, two and two; 0: not even of one. */
static size_t room_of(const Layer *layer) {
    uint32_t weight = layer->storage == BYTES ? 128 : (1u << layer->weight_bits) - 1;
    return INT16_MAX / (2 * weight * ((1u << layer->input_bits) - 1));
}

/* The sums of `count` windows (up to TILE) with one block of weights: `planes` of each, or bytes. */
static void add_block(const uint64_t *w, const uint64_t *x, size_t words, int weight_planes, int planes, size_t stride,
                      size_t room, Sums *sums, int count) {
    if (weight_planes == 0) {
        for (size_t begin = 0; begin < words; begin += MOST_PRODUCTS) {
            size_t some = words - begin > MOST_PRODUCTS ? MOST_PRODUCTS : words - begin;
            const uint64_t *left = w + begin * SIDE, *right = x + begin;
            if (count == TILE) {
                add_products(left, right, some, stride, room, sums, TILE);
            } else {
                for (int t = 0; t < count; t++) add_products(left, right + (size_t)t * stride, some, stride, room, sums + t, 1);
            }
        }
        return;
    }
    for (int i = 0; i < weight_planes; i++, w += words * SIDE) {
        for (int j = 0; j < planes; j++) {
            const uint64_t *right = x + (size_t)j * words;
            if (count == TILE) {
                add_counts(w, right, words, stride, i + j, sums, TILE);
            } else {
                for (int t = 0; t < count; t++) add_counts(w, right + (size_t)t * stride, words, stride, i + j, sums + t, 1);
            }
        }
    }
}

/* ---- Inputs as codes, and their windows ---- */

typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));

/* a where a > b and b elsewhere, for NaN too. */
#if !defined(DNAS_PORTABLE) && defined(__AVX2__)
INLINE Eight larger(Eight a, Eight b) { return (Eight)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE Eight smaller(Eight a, Eight b) { return (Eight)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE Eight larger(Eight a, Eight b) {
    EightInts first = a > b;
    return (Eight)(((EightInts)a & first) | ((EightInts)b & ~first));
}

INLINE Eight smaller(Eight a, Eight b) {
    EightInts first = a < b;
    return (Eight)(((EightInts)a & first) | ((EightInts)b & ~first));
}
#endif

/* As `encoded`, eight at a time: compilers do not see that it has no branches. */
static void encode_row(const Layer *layer, const float *x, size_t count, uint8_t *codes) {
    enum { BLOCK = 64 };
    float clip = layer->input_clip, low = layer->input_low;
    Grid grid = layer->input_grid;
    Eight zeros = {0}, lows = zeros + low, ones = zeros + 1.0f, tops = zeros + grid.top;
    size_t at = 0;
    for (; at + BLOCK <= count; at += BLOCK) {
        int32_t wide[BLOCK];
        for (size_t part = 0; part < BLOCK; part += 8) {
            Eight u;
            memcpy(&u, x + at + part, sizeof u);
            u = smaller(larger(u / clip, lows), ones) * grid.scale + grid.offset;
            EightInts found = __builtin_convertvector(smaller(larger(u, zeros), tops), EightInts);
            memcpy(wide + part, &found, sizeof found);
        }
        for (size_t part = 0; part < BLOCK; part++) codes[at + part] = (uint8_t)wide[part];
    }
    for (; at < count; at++) codes[at] = (uint8_t)encoded(x[at] / clip, low, &grid);
}

enum { ENCODED = 4096 }; /* codes at a time: reading what was just written in smaller pieces would wait for it */

/* Rows of up to ENCODED codes as planes of words; `each` words from one row to the next. */
static void pack_rows(const Layer *layer, const uint8_t *codes, size_t rows, size_t length, size_t each, size_t plane_words,
                      uint64_t *words) {
    for (size_t row = 0; row < rows; row++, codes += length, words += each) {
        for (size_t at = 0; at < length; at += 64) {
            size_t some = length - at < 64 ? length - at : 64;
            for (int plane = 0; plane < layer->input_planes; plane++) {
                words[(size_t)plane * plane_words + at / 64] = plane_of(codes + at, some, plane);
            }
        }
    }
}

/* The whole input as codes: bytes, or planes of words, of which each position and group has some. */
static void encode_image(const Layer *layer, const float *x, uint8_t *image) {
    size_t positions = positions_of(&layer->in), channels = layer->group_channels, rows = positions * layer->groups;
    if (!in_planes(layer)) {
        encode_row(layer, x, rows * channels, image);
        return;
    }
    size_t each = divided_up(channels, 64), many = channels < ENCODED ? ENCODED / channels : 1;
    uint64_t *words = (uint64_t *)(void *)image;
    uint8_t codes[ENCODED];
    for (size_t row = 0; row < rows; row += many) {
        size_t some = rows - row < many ? rows - row : many;
        for (size_t first = 0; first < channels; first += ENCODED) {
            size_t length = channels - first < ENCODED ? channels - first : ENCODED;
            encode_row(layer, x + row * channels + first, some * length, codes);
            pack_rows(layer, codes, some, length, each, rows * each, words + row * each + first / 64);
        }
    }
}

/* Puts `count` bits behind the `at` that are there; what is behind them is zero. */
static void append(uint64_t *words, size_t at, const uint64_t *bits, size_t count) {
    size_t word = at / 64, shift = at % 64;
    for (size_t done = 0; done < count; done += 64, word++) {
        size_t left = count - done;
        uint64_t some = bits[done / 64];
        words[word] |= some << shift;
        if (shift != 0 && shift + (left < 64 ? left : 64) > 64) words[word + 1] |= some >> (64 - shift);
    }
}

/* `count` ones behind the `at` bits that are there. */
static void append_ones(uint64_t *words, size_t at, size_t count) {
    for (size_t bit = at; bit < at + count;) {
        size_t some = 64 - bit % 64 < at + count - bit ? 64 - bit % 64 : at + count - bit;
        words[bit / 64] |= (some == 64 ? ~UINT64_C(0) : (UINT64_C(1) << some) - 1) << bit % 64;
        bit += some;
    }
}

typedef struct {
    uint64_t *x, *mask;
    size_t words, stride; /* words of one plane; from one window to the next */
    int64_t inputs[MOST_POSITIONS];
    double ones[MOST_POSITIONS];
    bool at_border[MOST_POSITIONS];
} Windows;

/* The input position that an output's tap reads, or -1. */
static int64_t source_at(const Layer *layer, const size_t *out, size_t first, size_t second, size_t third) {
    int64_t a = layer->sources[0][out[0] * layer->kernel[0] + first];
    int64_t b = layer->sources[1][out[1] * layer->kernel[1] + second];
    int64_t c = layer->sources[2][out[2] * layer->kernel[2] + third];
    if (a < 0 || b < 0 || c < 0) return -1;
    return (a * (int64_t)layer->in.space[1] + b) * (int64_t)layer->in.space[2] + c;
}

static void place_at(const Shape *shape, size_t position, size_t *out) {
    out[2] = position % shape->space[2];
    out[1] = position / shape->space[2] % shape->space[1];
    out[0] = position / shape->space[2] / shape->space[1];
}

/* Copies the codes of `taps` neighbouring positions from `source` on into the window, from its code `at` on. */
static void gather_taps(const Layer *layer, const uint8_t *image, const Windows *windows, size_t t, size_t group,
                        size_t source, size_t at, size_t taps) {
    size_t channels = layer->group_channels, each = divided_up(channels, 64), count = taps * channels;
    uint64_t *x = windows->x + t * windows->stride;
    if (!in_planes(layer)) {
        memcpy((uint8_t *)x + at, image + source * layer->in.channels + group * channels, count);
        return;
    }
    size_t plane_words = positions_of(&layer->in) * layer->groups * each;
    const uint64_t *words = (const uint64_t *)(const void *)image + (source * layer->groups + group) * each;
    for (int plane = 0; plane < layer->input_planes; plane++, words += plane_words, x += windows->words) {
        if (channels % 64 == 0) {
            for (size_t word = 0; word < taps * each; word++) x[at / 64 + word] = words[word];
        } else {
            for (size_t tap = 0; tap < taps; tap++) append(x, at + tap * channels, words + tap * each, channels);
        }
    }
}

static void mark_inside(const Layer *layer, const Windows *windows, size_t t, size_t at, size_t count) {
    uint64_t *mask = windows->mask + t * windows->words;
    if (in_planes(layer)) {
        append_ones(mask, at, count);
    } else {
        memset((uint8_t *)mask + at, 1, count);
    }
}

static int64_t sum_of_codes(const Layer *layer, const Windows *windows, size_t t) {
    const uint64_t *x = windows->x + t * windows->stride;
    int64_t total = 0;
    if (in_planes(layer)) {
        for (int plane = 0; plane < layer->input_planes; plane++, x += windows->words) {
            int64_t ones = 0;
            for (size_t m = 0; m < windows->words; m++) ones += __builtin_popcountll(x[m]);
            total += ones << plane;
        }
        return total;
    }
    for (size_t begin = 0; begin < windows->words; begin += 4096) { /* so that 32 bits hold each sum */
        size_t some = windows->words - begin < 4096 ? windows->words - begin : 4096;
        uint32_t part = 0;
        for (size_t m = 0; m < some * 8; m++) part += ((const uint8_t *)(x + begin))[m];
        total += part;
    }
    return total;
}

/* One row of taps of a window, at input row `base`; how many of them are inside. */
static size_t gather_row(const Layer *layer, const uint8_t *image, const Windows *windows, size_t t, size_t group,
                         size_t base, size_t out, size_t at, bool marks) {
    const int32_t *sources = layer->sources[2] + out * layer->kernel[2];
    size_t inside = 0, taps = layer->kernel[2], channels = layer->group_channels;
    for (size_t tap = 0; tap < taps;) {
        size_t run = 1;
        if (sources[tap] >= 0) {
            while (layer->runs && tap + run < taps && sources[tap + run] >= 0) run++;
            gather_taps(layer, image, windows, t, group, base + (size_t)sources[tap], at + tap * channels, run);
            if (marks) mark_inside(layer, windows, t, at + tap * channels, run * channels);
            inside += run;
        }
        tap += run;
    }
    return inside;
}

static bool is_whole(const Layer *layer, const size_t *out) {
    return layer->whole[0][out[0]] && layer->whole[1][out[1]] && layer->whole[2][out[2]];
}

/* The windows of one group at `count` output positions from `begin` on. */
static void gather(const Layer *layer, const uint8_t *image, Windows *windows, size_t group, size_t begin, size_t count) {
    size_t out[AXES], row = layer->kernel[2] * layer->group_channels;
    bool appends = in_planes(layer) && layer->group_channels % 64 != 0;
    place_at(&layer->out, begin, out);
    for (size_t t = 0; t < count; t++) {
        bool whole = is_whole(layer, out);
        size_t inside = 0, at = 0;
        if (!whole || appends) memset(windows->x + t * windows->stride, 0, windows->stride * 8);
        if (!whole) memset(windows->mask + t * windows->words, 0, windows->words * 8);
        for (size_t a = 0; a < layer->kernel[0]; a++) {
            int64_t first = layer->sources[0][out[0] * layer->kernel[0] + a];
            for (size_t b = 0; b < layer->kernel[1]; b++, at += row) {
                int64_t second = layer->sources[1][out[1] * layer->kernel[1] + b];
                if (first < 0 || second < 0) continue;
                size_t base = ((size_t)first * layer->in.space[1] + (size_t)second) * layer->in.space[2];
                inside += gather_row(layer, image, windows, t, group, base, out[2], at, !whole);
            }
        }
        windows->inputs[t] = sum_of_codes(layer, windows, t);
        windows->ones[t] = (double)(inside * layer->group_channels);
        windows->at_border[t] = !whole;
        if (++out[2] == layer->out.space[2]) place_at(&layer->out, (begin + t + 1) % positions_of(&layer->out), out);
    }
}

/* ---- Layers: running ---- */

/* What makes product sums values, of eight filters. */
typedef struct {
    Doubles slope[PARTS], start[PARTS], bias[PARTS], sums[PARTS];
    bool has_bias;
} Scales;

static void scales_of(const Layer *layer, size_t group, size_t block, Scales *scales) {
    double slope[SIDE], start[SIDE], bias[SIDE], sums[SIDE];
    for (size_t side = 0; side < SIDE; side++) {
        size_t f = block * SIDE + side, last = f < layer->group_filters ? f : layer->group_filters - 1;
        double clip = layer->is_quantized ? (double)layer->clip[clip_index(layer, group, last)] : 1.0;
        slope[side] = layer->is_quantized ? clip * layer->weight_grid.step : 1.0;
        start[side] = layer->is_quantized ? clip * layer->weight_grid.start : 0.0;
        bias[side] = layer->bias != NULL ? (double)layer->bias[group * layer->group_filters + last] : 0.0;
        sums[side] = (double)layer->sums[(group * layer->blocks + block) * SIDE + side];
    }
    memcpy(scales->slope, slope, sizeof slope), memcpy(scales->start, start, sizeof start);
    memcpy(scales->bias, bias, sizeof bias), memcpy(scales->sums, sums, sizeof sums);
    scales->has_bias = layer->bias != NULL;
}

typedef struct {
    double slope, start;
} InputScale;

static InputScale input_scale(const Layer *layer) {
    InputScale found = {1.0, 0.0};
    if (layer->has_input_codes) {
        found.slope = (double)layer->input_clip * layer->input_grid.step;
        found.start = (double)layer->input_clip * layer->input_grid.start;
    }
    return found;
}

/* One output of eight filters, in the order of the reference. */
INLINE void write_values(const Scales *scales, InputScale x, const Doubles *products, const Doubles *weights, double inputs,
                         double ones, size_t count, float *out) {
    Singles found[PARTS];
    double rest = x.slope * inputs + x.start * ones;
    for (int part = 0; part < PARTS; part++) {
        Doubles total = scales->slope[part] * (x.slope * products[part] + x.start * weights[part]);
        total = total + scales->start[part] * rest;
        if (scales->has_bias) total = total + scales->bias[part];
        found[part] = __builtin_convertvector(total, Singles);
    }
    if (count >= SIDE) {
        memcpy(out, found, sizeof found);
    } else {
        memcpy(out, found, count * sizeof(float));
    }
}

#ifdef HAS_TABLES
/* ---- Product sums by tables (as T-MAC does, arXiv 2407.00088) ----
 * Four codes of an input have 16 subsets, and a table holds the sum of each in a byte. The four bits of a filter's plane
 * at these places are an index into it, so one instruction looks the sums of 32 filters up, whatever the input's width.
 * Tables of an input position serve every window that it is in; padding has a table of zeros. */

/* The tables of eight codes: of the lower four, then of the upper. */
static inline __m256i tables_of(uint64_t codes) {
    const __m256i which = _mm256_set_m128i(_mm_set1_epi8(4), _mm_setzero_si128()), one = _mm256_set1_epi8(1);
    const __m256i subset = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    __m256i all = _mm256_set1_epi64x((int64_t)codes), total = _mm256_setzero_si256(), at = which, bit = one;
    for (int code = 0; code < 4; code++) {
        __m256i chosen = _mm256_cmpeq_epi8(_mm256_and_si256(subset, bit), bit);
        total = _mm256_add_epi8(total, _mm256_and_si256(_mm256_shuffle_epi8(all, at), chosen));
        at = _mm256_add_epi8(at, one), bit = _mm256_add_epi8(bit, bit);
    }
    return total;
}

/* Where, behind the tables of all positions, those of zeros and of ones are, and then the sum of each position. */
static uint8_t *other_tables(const Layer *layer, uint8_t *image) {
    return image + positions_of(&layer->in) * layer->groups * table_bytes(layer);
}

/* The tables of `count` codes, a row of them; their sum. */
static int32_t write_tables(const uint8_t *codes, size_t count, uint8_t *tables) {
    int32_t total = 0;
    for (size_t at = 0; at < count; at += OCTET, tables += FILTERS) {
        uint64_t eight = 0;
        memcpy(&eight, codes + at, count - at < OCTET ? count - at : OCTET);
        _mm256_store_si256((__m256i *)(void *)tables, tables_of(eight));
        total += (int32_t)(eight * UINT64_C(0x0101010101010101) >> 56);
    }
    return total;
}

/* The whole input as tables. */
static void encode_tables(const Layer *layer, const float *x, uint8_t *image) {
    size_t channels = layer->group_channels, rows = positions_of(&layer->in) * layer->groups, row_bytes = table_bytes(layer);
    size_t many = channels < ENCODED ? ENCODED / channels : 1;
    uint8_t codes[ENCODED], *others = other_tables(layer, image);
    int32_t *sums = (int32_t *)(void *)(others + 2 * row_bytes);
    memset(others, 0, row_bytes);
    memset(codes, 1, OCTET);
    for (size_t at = 0; at < row_bytes; at += FILTERS) write_tables(codes, OCTET, others + row_bytes + at);
    for (size_t row = 0; row < rows; row += many) {
        size_t some = rows - row < many ? rows - row : many;
        for (size_t at = 0; at < some; at++) sums[row + at] = 0;
        for (size_t first = 0; first < channels; first += ENCODED) {
            size_t length = channels - first < ENCODED ? channels - first : ENCODED;
            encode_row(layer, x + row * channels + first, some * length, codes);
            for (size_t at = 0; at < some; at++) {
                uint8_t *to = image + (row + at) * row_bytes + first / OCTET * FILTERS;
                sums[row + at] += write_tables(codes + at * length, length, to);
            }
        }
    }
}

/* The tables that `count` outputs from `begin` on read at each tap, LOOKED outputs side by side; `masks`: those of ones
 * where there is an input. */
static void find_tables(const Layer *layer, uint8_t *image, const uint8_t **tables, const uint8_t **masks, Windows *windows,
                        size_t group, size_t begin, size_t count) {
    size_t out[AXES], row_bytes = table_bytes(layer);
    const uint8_t *zeros = other_tables(layer, image), *base = image + group * row_bytes;
    const int32_t *sums = (const int32_t *)(const void *)(zeros + 2 * row_bytes) + group;
    place_at(&layer->out, begin, out);
    for (size_t t = 0; t < divided_up(count, LOOKED) * LOOKED; t++) {
        size_t at = t / LOOKED * layer->taps * LOOKED + t % LOOKED, inside = 0;
        int64_t total = 0;
        const int32_t *thirds = layer->sources[2] + out[2] * layer->kernel[2];
        for (size_t a = 0; a < layer->kernel[0]; a++) {
            int64_t first = layer->sources[0][out[0] * layer->kernel[0] + a];
            for (size_t b = 0; b < layer->kernel[1]; b++) {
                int64_t second = layer->sources[1][out[1] * layer->kernel[1] + b];
                int64_t line = (first * (int64_t)layer->in.space[1] + second) * (int64_t)layer->in.space[2];
                bool is_padding = first < 0 || second < 0 || t >= count;
                for (size_t c = 0; c < layer->kernel[2]; c++, at += LOOKED) {
                    bool outside = is_padding || thirds[c] < 0;
                    size_t source = outside ? 0 : (size_t)(line + thirds[c]) * layer->groups;
                    tables[at] = outside ? zeros : base + source * row_bytes;
                    masks[at] = outside ? zeros : zeros + row_bytes;
                    total += outside ? 0 : sums[source];
                    inside += !outside;
                }
            }
        }
        if (t >= count) continue;
        windows->inputs[t] = total, windows->ones[t] = (double)(inside * layer->group_channels);
        windows->at_border[t] = !is_whole(layer, out);
        if (++out[2] == layer->out.space[2]) place_at(&layer->out, (begin + t + 1) % positions_of(&layer->out), out);
    }
}

typedef int32_t Totals[LOOKED][FILTERS];

/* Adds the 16-bit sums of the first 16 filters and of the others, times 2^shift. */
INLINE void add_halves(__m256i first, __m256i second, int shift, int32_t *totals) {
    for (int quarter = 0; quarter < 4; quarter++) {
        __m256i half = quarter < 2 ? first : second;
        __m128i eight = quarter % 2 ? _mm256_extracti128_si256(half, 1) : _mm256_castsi256_si128(half);
        __m256i *to = (__m256i *)(void *)(totals + 8 * quarter);
        __m256i wide = _mm256_sll_epi32(_mm256_cvtepu16_epi32(eight), _mm_cvtsi32_si128(shift));
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), wide));
    }
}

/* Adds what the tables say of one plane of 32 filters, times 2^shift; a byte holds the sums of `most` pairs of tables. */
static void look_up(const uint8_t *w, const uint8_t *const *tables, size_t taps, size_t pairs, size_t most, int shift,
                    Totals totals) {
    enum { WIDENED = 256 }; /* bytes whose sum 16 bits hold */
    const __m256i nibble = _mm256_set1_epi8(15), low = _mm256_set1_epi16(255), zero = _mm256_setzero_si256();
    __m256i bytes[LOOKED], first[LOOKED], second[LOOKED];
    size_t left = most, widened = 0;
    for (int t = 0; t < LOOKED; t++) bytes[t] = first[t] = second[t] = zero;
    for (size_t tap = 0; tap < taps; tap++, tables += LOOKED) {
        const uint8_t *table[LOOKED] = {tables[0], tables[1], tables[2], tables[3]};
        for (size_t done = 0; done < pairs;) {
            size_t end = pairs - done < left ? pairs : done + left;
            left -= end - done;
            for (; done < end; done++, w += FILTERS) {
                __m256i both = _mm256_loadu_si256((const __m256i *)(const void *)w);
                __m256i lower = _mm256_and_si256(both, nibble), upper = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibble);
                for (int t = 0; t < LOOKED; t++) {
                    const __m128i *at = (const __m128i *)(const void *)(table[t] + done * FILTERS);
                    bytes[t] = _mm256_add_epi8(bytes[t], _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(at[0]), lower));
                    bytes[t] = _mm256_add_epi8(bytes[t], _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(at[1]), upper));
                }
            }
            if (left > 0 && (tap + 1 < taps || done < pairs)) continue;
            left = most, widened++;
            for (int t = 0; t < LOOKED; t++) {
                first[t] = _mm256_add_epi16(first[t], _mm256_and_si256(bytes[t], low));
                second[t] = _mm256_add_epi16(second[t], _mm256_srli_epi16(bytes[t], 8));
                bytes[t] = zero;
            }
            if (widened < WIDENED) continue;
            widened = 0;
            for (int t = 0; t < LOOKED; t++) {
                add_halves(first[t], second[t], shift, totals[t]);
                first[t] = second[t] = zero;
            }
        }
    }
    for (int t = 0; t < LOOKED; t++) add_halves(first[t], second[t], shift, totals[t]);
}

static void look_up_planes(const Layer *layer, const uint8_t *w, const uint8_t *const *tables, int input_bits, Totals totals) {
    size_t pairs = table_bytes(layer) / FILTERS, most = 255 / (OCTET * ((1u << input_bits) - 1));
    memset(totals, 0, sizeof(Totals));
    for (int plane = 0; plane < layer->weight_bits; plane++, w += layer->taps * table_bytes(layer)) {
        look_up(w, tables, layer->taps, pairs, most, plane, totals);
    }
}

INLINE void eight_as_doubles(const int32_t *totals, Doubles *found) {
    typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
    for (int part = 0; part < PARTS; part++) {
        Ints some;
        memcpy(&some, totals + part * LANES, sizeof some);
        found[part] = __builtin_convertvector(some, Doubles);
    }
}

/* The outputs of 32 filters, or what there is of them, at `count` (up to LOOKED) positions from `t0` on. */
static void run_looked_up(const Layer *layer, const Windows *windows, const uint8_t *w, const uint8_t *const *tables,
                          const uint8_t *const *masks, const Scales *scales, size_t t0, size_t count, size_t filters,
                          float *out) {
    InputScale scale = input_scale(layer);
    Totals totals, inside;
    bool at_border = false;
    look_up_planes(layer, w, tables, layer->input_bits, totals);
    for (size_t t = 0; t < count; t++) at_border |= windows->at_border[t0 + t] && scale.start != 0;
    if (at_border) look_up_planes(layer, w, masks, 1, inside);
    for (size_t t = 0; t < count; t++) {
        for (size_t block = 0; block * SIDE < filters && block < FILTERS / SIDE; block++) {
            Doubles products[PARTS], weights[PARTS];
            eight_as_doubles(totals[t] + block * SIDE, products);
            if (at_border) eight_as_doubles(inside[t] + block * SIDE, weights);
            write_values(&scales[block], scale, products, at_border ? weights : scales[block].sums,
                         (double)windows->inputs[t0 + t], windows->ones[t0 + t], filters - block * SIDE,
                         out + t * layer->out.channels + block * SIDE);
        }
    }
}

/* The outputs of all groups at `count` positions from `begin` on. */
static void run_tables(const Layer *layer, uint8_t *image, const uint8_t **tables, size_t begin, size_t count, float *out) {
    const uint8_t **masks = tables + layer->positions * layer->taps, *w = (const uint8_t *)layer->weights;
    Windows windows;
    for (size_t group = 0; group < layer->groups; group++) {
        find_tables(layer, image, tables, masks, &windows, group, begin, count);
        for (size_t block = 0; block < layer->blocks; block += FILTERS / SIDE) {
            size_t filters = layer->group_filters - block * SIDE;
            Scales scales[FILTERS / SIDE];
            for (size_t at = 0; at < FILTERS / SIDE; at++) scales_of(layer, group, block + at, &scales[at]);
            for (size_t t = 0; t < count; t += LOOKED) {
                size_t some = count - t < LOOKED ? count - t : LOOKED, at = t * layer->taps;
                run_looked_up(layer, &windows, w, tables + at, masks + at, scales, t, some, filters,
                              out + (begin + t) * layer->out.channels + group * layer->group_filters + block * SIDE);
            }
            w += table_bytes(layer) * layer->taps * (size_t)layer->weight_bits;
        }
    }
}
#endif

/* Bits of eight codes as the lowest bits of eight bytes. */
static inline uint64_t spread_bits(uint64_t byte) {
#if !defined(DNAS_PORTABLE) && defined(__BMI2__)
    return _pdep_u64(byte, UINT64_C(0x0101010101010101));
#else
    uint64_t picked = byte * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201);
    return (picked + UINT64_C(0x7f7f7f7f7f7f7f7f)) >> 7 & UINT64_C(0x0101010101010101);
#endif
}

#if !defined(DNAS_PORTABLE) && defined(__AVX2__) && !defined(__AVX512BW__)
/* 32 bits as bytes of all ones or zeros. */
static inline __m256i spread_word(uint32_t bits) {
    const __m256i byte = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x((int64_t)UINT64_C(0x8040201008040201));
    return _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int32_t)bits), byte), bit), bit);
}
#endif

/* A block of bit planes as bytes. */
static void spread_block(const Layer *layer, const uint64_t *planes, uint64_t *bytes) {
    size_t used = divided_up(layer->window, 8);
#if !defined(DNAS_PORTABLE) && defined(__AVX512BW__)
    for (size_t word = 0; word < layer->words; word++) {
        size_t left = used - word * 8 < 8 ? used - word * 8 : 8;
        for (size_t side = 0; side < SIDE; side++) {
            __m512i codes = _mm512_setzero_si512();
            const uint64_t *bits = planes + word * SIDE + side;
            for (int plane = 0; plane < layer->weight_bits; plane++, bits += layer->words * SIDE) {
                __m512i both = _mm512_or_si512(codes, _mm512_set1_epi8((char)(1 << plane)));
                codes = _mm512_mask_mov_epi8(codes, *bits, both);
            }
            uint64_t found[8];
            memcpy(found, &codes, sizeof found);
            for (size_t m = 0; m < left; m++) bytes[(word * 8 + m) * SIDE + side] = found[m];
        }
    }
    return;
#elif !defined(DNAS_PORTABLE) && defined(__AVX2__)
    for (size_t half = 0; half * 4 < used; half++) { /* of a word */
        size_t left = used - half * 4 < 4 ? used - half * 4 : 4;
        for (size_t side = 0; side < SIDE; side++) {
            const uint64_t *bits = planes + half / 2 * SIDE + side;
            __m256i codes = _mm256_setzero_si256();
            for (int plane = 0; plane < layer->weight_bits; plane++, bits += layer->words * SIDE) {
                __m256i spread = spread_word((uint32_t)(*bits >> half % 2 * 32));
                codes = _mm256_or_si256(codes, _mm256_and_si256(spread, _mm256_set1_epi8((char)(1 << plane))));
            }
            uint64_t found[4];
            memcpy(found, &codes, sizeof found);
            for (size_t m = 0; m < left; m++) bytes[(half * 4 + m) * SIDE + side] = found[m];
        }
    }
    return;
#endif
    for (size_t m = 0; m < used; m++) {
        for (size_t side = 0; side < SIDE; side++) {
            const uint64_t *word = planes + m / 8 * SIDE + side;
            uint64_t found = 0;
            for (int plane = 0; plane < layer->weight_bits; plane++, word += layer->words * SIDE) {
                found |= spread_bits(*word >> m % 8 * 8 & 255) << plane;
            }
            bytes[m * SIDE + side] = found;
        }
    }
}

/* Sums below 2^52 as fp64, by their bits: not every processor converts 64-bit integers. */
INLINE void to_doubles(const Lanes *sums, uint64_t added, Doubles *found) {
    for (int part = 0; part < PARTS; part++) {
        Lanes bits = (sums[part] + added) | UINT64_C(0x4330000000000000);
        found[part] = (Doubles)bits - 4503599627370496.0;
    }
}

/* The outputs of one block of filters at up to TILE positions from `t0` on. */
static void run_tile(const Layer *layer, const Windows *windows, const uint64_t *w, const Scales *scales, InputScale scale,
                     size_t t0, int count, size_t filters, size_t row, float *out) {
    int weight_planes = in_planes(layer) ? layer->weight_bits : 0;
    uint64_t less = layer->storage == BYTES ? 128 : 0;
    Sums sums[TILE];
    memset(sums, 0, sizeof sums);
    size_t room = weight_planes > 0 ? 0 : room_of(layer);
    add_block(w, windows->x + t0 * windows->stride, windows->words, weight_planes, layer->input_planes, windows->stride,
              room, sums, count);
    for (size_t t = 0; t < (size_t)count; t++) {
        Doubles products[PARTS], inside[PARTS];
        const Doubles *weights = scales->sums;
        to_doubles(sums[t], less * (uint64_t)windows->inputs[t0 + t], products);
        if (windows->at_border[t0 + t] && scale.start != 0) {
            Sums some = {{0}};
            add_block(w, windows->mask + (t0 + t) * windows->words, windows->words, weight_planes, 1, windows->words, room,
                      &some, 1);
            to_doubles(some, less * (uint64_t)windows->ones[t0 + t], inside);
            weights = inside;
        }
        write_values(scales, scale, products, weights, (double)windows->inputs[t0 + t], windows->ones[t0 + t], filters,
                     out + t * row);
    }
}

/* The weights of one block of filters as they are kept. */
static const uint64_t *planes_of(const Layer *layer, size_t group, size_t block) {
    size_t planes = layer->storage == PLANES ? (size_t)layer->weight_bits : 1;
    return layer->weights + (group * layer->blocks + block) * planes * layer->words * SIDE;
}

static void spread_layer(const Layer *layer, uint64_t *bytes) {
    size_t block_words = divided_up(layer->window, 8) * SIDE;
    for (size_t group = 0; group < layer->groups; group++) {
        for (size_t block = 0; block < layer->blocks; block++, bytes += block_words) {
            spread_block(layer, planes_of(layer, group, block), bytes);
        }
    }
}

/* The outputs of all groups at `count` positions from `begin` on. */
static void run_positions(const Layer *layer, const uint8_t *image, Windows *windows, uint64_t *spread, size_t begin,
                          size_t count, float *out) {
    InputScale scale = input_scale(layer);
    size_t row = layer->out.channels;
    for (size_t group = 0; group < layer->groups; group++) {
        gather(layer, image, windows, group, begin, count);
        for (size_t block = 0; block < layer->blocks; block++) {
            const uint64_t *w = planes_of(layer, group, block);
            size_t first = group * layer->group_filters + block * SIDE, filters = layer->group_filters - block * SIDE;
            Scales scales;
            scales_of(layer, group, block, &scales);
            if (layer->spreads) {
                w = spread + (layer->spreads_once ? (group * layer->blocks + block) * windows->words * SIDE : 0);
                if (!layer->spreads_once) spread_block(layer, planes_of(layer, group, block), spread);
            }
            for (size_t t = 0; t < count; t += TILE) {
                int some = count - t < TILE ? (int)(count - t) : TILE;
                run_tile(layer, windows, w, &scales, scale, t, some, filters, row,
                         out + (begin + t) * row + first);
            }
        }
    }
}

/* A depthwise layer: each channel by itself, many channels at a time. */
static void run_depthwise(const Layer *layer, const uint8_t *image, size_t position, float *out) {
    size_t place[AXES], channels = layer->in.channels;
    InputScale scale = input_scale(layer);
    place_at(&layer->out, position, place);
    for (size_t begin = 0; begin < channels; begin += 64) {
        size_t some = channels - begin < 64 ? channels - begin : 64, inside = 0, tap = 0;
        int32_t products[64] = {0}, inputs[64] = {0}, weights[64] = {0};
        for (size_t a = 0; a < layer->kernel[0]; a++) {
            for (size_t b = 0; b < layer->kernel[1]; b++) {
                for (size_t c = 0; c < layer->kernel[2]; c++, tap++) {
                    int64_t source = source_at(layer, place, a, b, c);
                    if (source < 0) continue;
                    const uint8_t *x = image + (size_t)source * channels + begin;
                    const uint8_t *w = (const uint8_t *)layer->weights + tap * channels + begin;
                    inside++;
                    for (size_t at = 0; at < some; at++) {
                        products[at] += (int32_t)w[at] * x[at], inputs[at] += x[at], weights[at] += w[at];
                    }
                }
            }
        }
        for (size_t at = 0; at < some; at++) {
            size_t channel = begin + at;
            double clip = (double)layer->clip[clip_index(layer, channel, 0)];
            double slope = clip * layer->weight_grid.step, start = clip * layer->weight_grid.start;
            double total = slope * (scale.slope * products[at] + scale.start * weights[at]);
            total = total + start * (scale.slope * inputs[at] + scale.start * (double)inside);
            out[position * channels + channel] = (float)(layer->bias == NULL ? total : total + (double)layer->bias[channel]);
        }
    }
}

/* Values of one window in fp64, and what of it is inside; in the order of channels, then taps. */
static double gather_values(const Layer *layer, const float *x, size_t group, size_t position, double *window, double *mask) {
    size_t out[AXES], m = 0;
    double ones = 0;
    place_at(&layer->out, position, out);
    for (size_t channel = 0; channel < layer->group_channels; channel++) {
        for (size_t a = 0; a < layer->kernel[0]; a++) {
            for (size_t b = 0; b < layer->kernel[1]; b++) {
                for (size_t c = 0; c < layer->kernel[2]; c++, m++) {
                    int64_t source = source_at(layer, out, a, b, c);
                    mask[m] = source < 0 ? 0.0 : 1.0, window[m] = 0.0, ones += mask[m];
                    if (source < 0) continue;
                    float value = x[(size_t)source * layer->in.channels + group * layer->group_channels + channel];
                    window[m] = layer->has_input_codes
                                    ? (double)encoded(value / layer->input_clip, layer->input_low, &layer->input_grid)
                                    : (double)value;
                }
            }
        }
    }
    return ones;
}

/* Sums of a layer of which something stays fp32, or has more than 8 bits: in fp64, in the order of the window. */
static void run_values(const Layer *layer, const float *x, double *window, size_t position, float *out) {
    InputScale scale = input_scale(layer);
    double *mask = window + layer->window;
    for (size_t group = 0; group < layer->groups; group++) {
        double ones = gather_values(layer, x, group, position, window, mask), inputs = 0;
        for (size_t m = 0; m < layer->window; m++) inputs = inputs + window[m];
        for (size_t block = 0; block < layer->blocks; block++) {
            const float *w = (const float *)layer->weights + (group * layer->blocks + block) * layer->window * SIDE;
            Doubles products[PARTS] = {{0}}, weights[PARTS] = {{0}};
            Scales scales;
            scales_of(layer, group, block, &scales);
            for (size_t m = 0; m < layer->window; m++, w += SIDE) {
                for (int part = 0; part < PARTS; part++) {
                    Singles single;
                    memcpy(&single, w + part * LANES, sizeof single);
                    Doubles wide = __builtin_convertvector(single, Doubles);
                    products[part] = products[part] + window[m] * wide;
                    weights[part] = weights[part] + mask[m] * wide;
                }
            }
            size_t first = group * layer->group_filters + block * SIDE;
            write_values(&scales, scale, products, weights, inputs, ones, layer->group_filters - block * SIDE,
                         out + position * layer->out.channels + first);
        }
    }
}

/* ---- Operations between layers ---- */

/* exp(x) for NaN and any number, by additions and products alone: every library's last bit is another one. */
static double exponential(double x) {
    static const double factors[] = {1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880,
                                     1.0 / 40320,      1.0 / 5040,      1.0 / 720,      1.0 / 120,     1.0 / 24,
                                     1.0 / 6,          0.5,             1.0,            1.0};
    x = x > -700.0 ? x : -700.0;
    x = x < 700.0 ? x : 700.0;
    double scaled = x * 1.4426950408889634 + 0.5;
    int64_t power = (int64_t)scaled;
    if ((double)power > scaled) power--;
    double rest = (x - (double)power * 0.6931471803691238) - (double)power * 1.9082149292705877e-10, total = 0.0;
    for (size_t at = 0; at < sizeof factors / sizeof *factors; at++) total = total * rest + factors[at];
    uint64_t bits = (uint64_t)(power + 1023) << 52;
    double two;
    memcpy(&two, &bits, sizeof two);
    return total * two;
}

static double sigmoid(double x) { return 1.0 / (1.0 + exponential(-x)); }

static float hardsigmoid(float x) {
    float shifted = x + 3.0f;
    return (shifted > 6.0f ? 6.0f : shifted < 0.0f ? 0.0f : shifted) / 6.0f;
}

static void clamp(const Step *step, float *x, size_t count) {
    for (size_t at = 0; step->has_a && at < count; at++) x[at] = x[at] < step->a ? step->a : x[at];
    for (size_t at = 0; step->has_b && at < count; at++) x[at] = x[at] > step->b ? step->b : x[at];
}

static void normalise(const Step *step, float *x, size_t positions, size_t channels) {
    for (size_t at = 0; at < positions; at++, x += channels) {
        for (size_t c = 0; c < channels; c++) x[c] = step->first[c] * x[c] + step->second[c];
    }
}

/* Numbers beside x: one for each, one for each channel, or one in all. */
static void combine(const Step *step, float *x, const Value *other, size_t begin, size_t positions, size_t channels) {
    bool channelwise = other->shape.channels == channels, whole = channelwise && positions_of(&other->shape) != 1;
    for (size_t at = 0; at < positions; at++, x += channels) {
        const float *y = other->data + (whole ? (begin + at) * channels : 0);
        for (size_t c = 0; c < channels; c++) {
            float value = y[channelwise ? c : 0];
            if (step->kind == ADD) x[c] = x[c] + step->a * value;
            if (step->kind == MULTIPLY) x[c] = x[c] * value;
            if (step->kind == PRELU) x[c] = x[c] > 0.0f ? x[c] : value * x[c];
        }
    }
}

static void map_values(const Step *step, float *x, size_t count) {
    for (size_t at = 0; at < count; at++) {
        float value = x[at];
        switch (step->kind) {
            case SCALE: x[at] = step->a * value + step->b; break;
            case LEAKY: x[at] = value > 0.0f ? value : step->a * value; break;
            case HARDSIGMOID: x[at] = hardsigmoid(value); break;
            case HARDSWISH: x[at] = value * hardsigmoid(value); break;
            case SIGMOID: x[at] = (float)sigmoid((double)value); break;
            case SILU: x[at] = (float)((double)value * sigmoid((double)value)); break;
            default: x[at] = (float)(2.0 * sigmoid((double)(value + value)) - 1.0); break; /* TANH */
        }
    }
}

static bool is_elementwise(Kind kind) { return kind > LAYER && kind <= TANH; }
static bool is_of_two(Kind kind) { return kind == ADD || kind == MULTIPLY || kind == PRELU; }

/* An elementwise step on `positions` from `begin` on of what is in its result already. */
static void apply(const dnas_net *net, size_t index, size_t begin, size_t positions) {
    const Step *step = &net->steps[index];
    const Value *value = &net->slots[index + 1];
    size_t channels = value->shape.channels;
    float *x = value->data + begin * channels;
    if (step->kind == NORM) {
        normalise(step, x, positions, channels);
    } else if (step->kind == CLAMP) {
        clamp(step, x, positions * channels);
    } else if (is_of_two(step->kind)) {
        combine(step, x, &net->slots[step->inputs[step->other]], begin, positions, channels);
    } else {
        map_values(step, x, positions * channels);
    }
}

/* The steps that go on with a result in place, on some of its positions while they are near. */
static void finish(const dnas_net *net, size_t index, size_t begin, size_t positions) {
    for (size_t at = index + 1; at < net->step_count && net->steps[at].chained; at++) apply(net, at, begin, positions);
}

static void pool(const Step *step, const Value *in, const Value *out) {
    size_t channels = in->shape.channels, place[AXES], counts[AXES];
    for (int axis = 0; axis < AXES; axis++) counts[axis] = (size_t)step->index[0][axis];
    for (size_t at = 0; at < positions_of(&out->shape); at++) {
        Shape windows = {0, 0, {counts[0], counts[1], counts[2]}};
        place_at(&windows, at, place);
        int32_t low[AXES], high[AXES];
        double divisor = 1;
        for (int axis = 0; axis < AXES; axis++) {
            low[axis] = step->index[axis + 1][place[axis]], high[axis] = step->stop[axis][place[axis]];
            divisor *= step->count[axis][place[axis]];
        }
        for (size_t channel = 0; channel < channels; channel++) {
            double total = step->has_a ? (double)-__builtin_inff() : 0.0;
            for (int32_t a = low[0]; a < high[0]; a++) {
                for (int32_t b = low[1]; b < high[1]; b++) {
                    for (int32_t c = low[2]; c < high[2]; c++) {
                        size_t source = ((size_t)a * in->shape.space[1] + (size_t)b) * in->shape.space[2] + (size_t)c;
                        double value = (double)in->data[source * channels + channel];
                        total = !step->has_a ? total + value : value > total ? value : total;
                    }
                }
            }
            out->data[at * channels + channel] = (float)(step->has_a ? total : total / divisor);
        }
    }
}

static void take_indices(const Step *step, const Value *in, const Value *out) {
    size_t place[AXES], channels = out->shape.channels;
    for (size_t at = 0; at < positions_of(&out->shape); at++) {
        place_at(&out->shape, at, place);
        int64_t source = 0;
        for (int axis = 0; axis < AXES; axis++) {
            int64_t index = step->index[axis + 1] == NULL ? (int64_t)place[axis] : step->index[axis + 1][place[axis]];
            source = index < 0 || source < 0 ? -1 : source * (int64_t)in->shape.space[axis] + index;
        }
        for (size_t c = 0; c < channels; c++) {
            int64_t channel = step->index[0] == NULL ? (int64_t)c : step->index[0][c];
            bool none = source < 0 || channel < 0;
            out->data[at * channels + c] =
                none ? 0.0f : in->data[(size_t)source * in->shape.channels + (size_t)channel];
        }
    }
}

static void concatenate(const dnas_net *net, const Step *step, const Value *out) {
    size_t first = 0, channels = out->shape.channels;
    for (size_t at = 0; at < step->input_count; at++) {
        const Value *in = &net->slots[step->inputs[at]];
        size_t some = in->shape.channels;
        for (size_t position = 0; position < positions_of(&out->shape); position++) {
            memcpy(out->data + position * channels + first, in->data + position * some, some * sizeof(float));
        }
        first += some;
    }
}

/* The same numbers in the order of channels, then positions, in another shape. */
static void reshape(const Value *in, const Value *out) {
    size_t from = positions_of(&in->shape), to = positions_of(&out->shape);
    for (size_t at = 0; at < size_of(&out->shape); at++) {
        out->data[at % to * out->shape.channels + at / to] = in->data[at % from * in->shape.channels + at / from];
    }
}

/* Whether a layer's sums are looked up; if so, its outputs are written, and what goes on with them. */
static bool ran_by_tables(const dnas_net *net, size_t index, const float *x, float *out) {
#ifdef HAS_TABLES
    const Layer *layer = net->steps[index].layer;
    size_t positions = positions_of(&layer->out), some;
    if (layer->storage != TABLES) return false;
    encode_tables(layer, x, net->scratch);
    for (size_t begin = 0; begin < positions; begin += some) {
        some = positions - begin < layer->positions ? positions - begin : layer->positions;
        run_tables(layer, net->scratch, (const uint8_t **)(void *)(net->scratch + layer->image_bytes), begin, some, out);
        finish(net, index, begin, some);
    }
    return true;
#else
    (void)net, (void)index, (void)x, (void)out;
    return false;
#endif
}

static void run_layer(const dnas_net *net, size_t index) {
    const Layer *layer = net->steps[index].layer;
    const float *x = net->slots[net->steps[index].inputs[0]].data;
    float *out = net->slots[index + 1].data;
    uint8_t *image = net->scratch;
    if (ran_by_tables(net, index, x, out)) return;
    Windows windows;
    windows.words = in_planes(layer) ? layer->words : divided_up(layer->window, 8);
    windows.stride = windows.words * (size_t)layer->input_planes;
    windows.x = (uint64_t *)(net->scratch + layer->image_bytes);
    windows.mask = windows.x + layer->positions * windows.stride;
    uint64_t *spread = (uint64_t *)(net->scratch + layer->image_bytes + layer->gather_bytes);
    if (layer->storage != FLOATS) encode_image(layer, x, image);
    if (layer->spreads_once) spread_layer(layer, spread);
    memset(net->scratch + layer->image_bytes, 0, layer->gather_bytes);
    size_t positions = positions_of(&layer->out), some;
    for (size_t begin = 0; begin < positions; begin += some) {
        some = positions - begin < layer->positions ? positions - begin : layer->positions;
        if (layer->storage == FLOATS) {
            for (size_t at = 0; at < some; at++) run_values(layer, x, (double *)(void *)windows.x, begin + at, out);
        } else if (layer->storage == DEPTHWISE) {
            for (size_t at = 0; at < some; at++) run_depthwise(layer, image, begin + at, out);
        } else {
            run_positions(layer, image, &windows, spread, begin, some, out);
        }
        finish(net, index, begin, some);
    }
}

static void run_step(const dnas_net *net, size_t index) {
    const Step *step = &net->steps[index];
    const Value *out = &net->slots[index + 1], *in = step->input_count ? &net->slots[step->inputs[0]] : NULL;
    if (step->kind == LAYER) {
        run_layer(net, index);
        return;
    }
    if (is_elementwise(step->kind)) {
        memcpy(out->data, in->data, size_of(&out->shape) * sizeof(float));
        apply(net, index, 0, positions_of(&out->shape));
    }
    if (step->kind == POOL) pool(step, in, out);
    if (step->kind == TAKE) take_indices(step, in, out);
    if (step->kind == CONCATENATE) concatenate(net, step, out);
    if (step->kind == RESHAPE) reshape(in, out);
    if (step->kind == ZEROS) memset(out->data, 0, size_of(&out->shape) * sizeof(float));
    finish(net, index, 0, positions_of(&out->shape));
}

/* ---- Planning a profile ---- */

/* int32 indices from `low` to `high` from a list of `count`, on the arena. */
static dnas_status plan_indices(dnas_net *net, Node list, int64_t low, int64_t high, size_t count, int32_t **found) {
    Items items = items_of(&net->values, list);
    CHECK(kind_of(&net->values, list) == V_LIST && items.left == count, DNAS_DAMAGED);
    *found = take(&net->arena, count, sizeof(int32_t));
    CHECK(*found != NULL, DNAS_MEMORY);
    for (size_t at = 0; at < count; at++) {
        Node node;
        int64_t index;
        CHECK(next(&items, &node) && within(&net->values, node, low, high, &index), DNAS_DAMAGED);
        (*found)[at] = (int32_t)index;
    }
    return DNAS_OK;
}

static dnas_status plan_pool(dnas_net *net, Step *step, const Shape *in, const Shape *out) {
    const Values *values = &net->values;
    Node starts = field(values, step->told, "starts"), stops = field(values, step->told, "stops");
    Node counts = field(values, step->told, "counts");
    size_t axes = in->axes - 1, total = 1;
    step->has_a = text_is(values, field(values, step->told, "function"), "max");
    CHECK(step->has_a || text_is(values, field(values, step->told, "function"), "mean"), DNAS_UNSUPPORTED);
    CHECK(items_of(values, starts).left == axes && in->channels == out->channels, DNAS_DAMAGED);
    step->index[0] = take(&net->arena, AXES, sizeof(int32_t));
    CHECK(step->index[0] != NULL, DNAS_MEMORY);
    for (size_t axis = 0; axis < AXES; axis++) {
        bool told = axis >= AXES - axes;
        size_t at = told ? axis - (AXES - axes) : 0, count = told ? (size_t)items_of(values, item(values, starts, at)).left : 1;
        int64_t size = (int64_t)in->space[axis];
        CHECK(count >= 1 && count <= MOST_SIZE && multiplied(&total, count), DNAS_DAMAGED);
        step->index[0][axis] = (int32_t)count;
        if (!told) {
            step->index[axis + 1] = take(&net->arena, 3, sizeof(int32_t));
            CHECK(step->index[axis + 1] != NULL, DNAS_MEMORY);
            step->index[axis + 1][0] = 0, step->index[axis + 1][1] = step->index[axis + 1][2] = 1;
            step->stop[axis] = step->index[axis + 1] + 1, step->count[axis] = step->index[axis + 1] + 2;
            continue;
        }
        TRY(plan_indices(net, item(values, starts, at), 0, size, count, &step->index[axis + 1]));
        TRY(plan_indices(net, item(values, stops, at), 0, size, count, &step->stop[axis]));
        TRY(plan_indices(net, item(values, counts, at), 1, MOST_SIZE, count, &step->count[axis]));
    }
    return total == positions_of(out) ? DNAS_OK : DNAS_DAMAGED;
}

static dnas_status plan_take(dnas_net *net, Step *step, const Shape *in, const Shape *out) {
    const Values *values = &net->values;
    Node lists = field(values, step->told, "indices");
    CHECK(items_of(values, lists).left == in->axes && in->axes == out->axes, DNAS_DAMAGED);
    for (size_t at = 0; at < in->axes; at++) {
        size_t axis = at == 0 ? 0 : AXES - in->axes + 1 + at;
        size_t size = at == 0 ? in->channels : in->space[axis - 1], to = at == 0 ? out->channels : out->space[axis - 1];
        Node list = item(values, lists, at);
        if (kind_of(values, list) == V_NULL) {
            CHECK(size == to, DNAS_DAMAGED);
        } else {
            TRY(plan_indices(net, list, -1, (int64_t)size - 1, to, &step->index[axis]));
        }
    }
    return DNAS_OK;
}

static dnas_status plan_norm(dnas_net *net, Step *step, size_t channels) {
    const Values *values = &net->values;
    Node owner = field(values, step->told, "layer"), norm;
    if (owner == NONE) {
        norm = entry(values, field(values, net->profile, "norms"), field(values, step->told, "name"));
    } else {
        norm = field(values, entry(values, net->profile_layers, owner), "norm");
    }
    TRY(read_vector(net, field(values, norm, "scale"), channels, &step->first));
    return read_vector(net, field(values, norm, "shift"), channels, &step->second);
}

static dnas_status plan_parameter(dnas_net *net, Step *step, Value *value) {
    const Values *values = &net->values;
    Node name = entry(values, field(values, net->description, "parameters"), field(values, step->told, "name"));
    const Tensor *tensor = tensor_of(net, name);
    CHECK(tensor != NULL && tensor->is_float && tensor->rows > 0, DNAS_DAMAGED);
    value->data = take(&net->arena, size_of(&value->shape), sizeof(float));
    CHECK(value->data != NULL, DNAS_MEMORY);
    size_t mark = net->arena.used, positions = positions_of(&value->shape);
    Part part;
    TRY(read_part(net, name, tensor->rows, tensor->bytes / 4 / tensor->rows, &part));
    CHECK(part.columns > 0 && part.rows <= LARGEST / part.columns, DNAS_DAMAGED);
    CHECK(part.rows * part.columns == size_of(&value->shape), DNAS_DAMAGED);
    for (size_t at = 0; at < size_of(&value->shape); at++) {
        float found = float_at(tensor, stored_index(&part, at / part.columns, at % part.columns));
        value->data[at % positions * value->shape.channels + at / positions] = found;
    }
    net->arena.used = mark;
    value->is_kept = true;
    return DNAS_OK;
}

static dnas_status read_float(const Values *values, Node node, float *found, bool *is_there) {
    double wide = 0;
    *is_there = kind_of(values, node) != V_NULL;
    CHECK(!*is_there || number(values, node, &wide), DNAS_DAMAGED);
    *found = (float)wide;
    return DNAS_OK;
}

static dnas_status plan_elementwise(dnas_net *net, Step *step, const Shape *out) {
    const Values *values = &net->values;
    bool there;
    CHECK(step->input_count == (is_of_two(step->kind) ? 2 : 1), DNAS_DAMAGED);
    CHECK(same_shape(&net->slots[step->inputs[0]].shape, out), DNAS_DAMAGED);
    step->other = 1;
    if (is_of_two(step->kind)) {
        const Shape *other = &net->slots[step->inputs[1]].shape;
        bool one = positions_of(other) == 1 && (other->channels == out->channels || other->channels == 1);
        CHECK(one || same_shape(other, out), DNAS_DAMAGED);
    }
    if (step->kind == NORM) return plan_norm(net, step, out->channels);
    if (step->kind == CLAMP) {
        TRY(read_float(values, field(values, step->told, "low"), &step->a, &step->has_a));
        return read_float(values, field(values, step->told, "high"), &step->b, &step->has_b);
    }
    if (step->kind == SCALE) TRY(read_float(values, field(values, step->told, "offset"), &step->b, &there));
    if (step->kind == SCALE || step->kind == LEAKY) {
        return read_float(values, field(values, step->told, "slope"), &step->a, &there);
    }
    return step->kind == ADD ? read_float(values, field(values, step->told, "factor"), &step->a, &there) : DNAS_OK;
}

static dnas_status plan_kind(dnas_net *net, size_t index) {
    Step *step = &net->steps[index];
    Value *value = &net->slots[index + 1];
    const Shape *out = &value->shape, *in = step->input_count ? &net->slots[step->inputs[0]].shape : NULL;
    size_t channels = 0;
    if (step->kind == PARAMETER) return plan_parameter(net, step, value);
    if (step->kind == ZEROS) return DNAS_OK;
    CHECK(in != NULL, DNAS_DAMAGED);
    switch (step->kind) {
        case LAYER: return plan_layer(net, step, index);
        case POOL: return plan_pool(net, step, in, out);
        case TAKE: return plan_take(net, step, in, out);
        case RESHAPE: return size_of(in) == size_of(out) ? DNAS_OK : DNAS_DAMAGED;
        case CONCATENATE:
            for (size_t at = 0; at < step->input_count; at++) {
                const Shape *part = &net->slots[step->inputs[at]].shape;
                CHECK(memcmp(part->space, out->space, sizeof part->space) == 0, DNAS_DAMAGED);
                CHECK(part->channels <= out->channels - channels, DNAS_DAMAGED); /* a sum could overflow 32 bits */
                channels += part->channels;
            }
            return channels == out->channels ? DNAS_OK : DNAS_DAMAGED;
        default: return plan_elementwise(net, step, out);
    }
}

static dnas_status plan_step(dnas_net *net, size_t index, Node told) {
    const Values *values = &net->values;
    Step *step = &net->steps[index];
    memset(step, 0, sizeof *step);
    memset(&net->slots[index + 1], 0, sizeof(Value));
    step->told = told;
    Node kind = field(values, told, "kind"), node;
    for (step->kind = LAYER; step->kind < KINDS && !text_is(values, kind, KIND_NAMES[step->kind]);) step->kind++;
    CHECK(step->kind < KINDS, DNAS_UNSUPPORTED);
    Items inputs = items_of(values, field(values, told, "inputs"));
    CHECK(inputs.left <= MOST_STEPS, DNAS_UNSUPPORTED);
    step->input_count = (size_t)inputs.left;
    step->inputs = take(&net->arena, step->input_count, sizeof(size_t));
    CHECK(step->inputs != NULL, DNAS_MEMORY);
    for (size_t at = 0; at < step->input_count; at++) {
        int64_t input;
        CHECK(next(&inputs, &node) && within(values, node, 0, (int64_t)index, &input), DNAS_DAMAGED);
        step->inputs[at] = (size_t)input;
        net->slots[input].readers++, net->slots[input].last = index;
    }
    TRY(read_shape(values, field(values, told, "shape"), &net->slots[index + 1].shape));
    return plan_kind(net, index);
}

/* Whether a step can go on in place with the result of the step before. */
static bool can_chain(const dnas_net *net, size_t index) {
    Step *step = &net->steps[index];
    const Value *before = &net->slots[index];
    if (index == 0 || !is_elementwise(step->kind) || before->readers != 1 || before->is_kept || net->output == index) return false;
    if (net->steps[index - 1].kind == ZEROS) return false;
    if (step->inputs[0] == index) return true;
    bool symmetric = step->kind == MULTIPLY || (step->kind == ADD && step->a == 1.0f);
    if (!symmetric || step->inputs[1] != index || !same_shape(&before->shape, &net->slots[index + 1].shape)) return false;
    step->other = 0;
    return true;
}

/* Where each result lies: at the lowest place that no result takes that is needed at the same time. */
static dnas_status plan_places(dnas_net *net, size_t *total) {
    *total = 0;
    for (size_t slot = 0; slot <= net->step_count; slot++) {
        Value *value = &net->slots[slot];
        value->same_as = slot > 0 && net->steps[slot - 1].chained ? net->slots[slot - 1].same_as : slot;
        if (slot == net->output) value->last = net->step_count;
        Value *root = &net->slots[value->same_as];
        if (root->last < value->last) root->last = value->last;
        value->first = slot == 0 ? 0 : slot - 1;
        if (value->last < value->first) value->last = value->first;
        value->bytes = divided_up(size_of(&value->shape) * sizeof(float), ALIGNMENT) * ALIGNMENT;
    }
    for (size_t slot = 0; slot <= net->step_count; slot++) {
        Value *value = &net->slots[slot];
        if (value->same_as != slot || value->is_kept) continue;
        for (size_t other = 0; other < slot; other++) {
            const Value *taken = &net->slots[other];
            bool apart = taken->same_as != other || taken->is_kept || taken->last < value->first || value->last < taken->first;
            if (apart || taken->offset >= value->offset + value->bytes || value->offset >= taken->offset + taken->bytes) continue;
            value->offset = taken->offset + taken->bytes;
            other = (size_t)-1; /* look again from the first */
        }
        CHECK(value->offset <= LARGEST, DNAS_MEMORY);
        if (*total < value->offset + value->bytes) *total = value->offset + value->bytes;
    }
    return DNAS_OK;
}

static dnas_status plan_memory(dnas_net *net) {
    size_t total;
    for (size_t index = 0; index < net->step_count; index++) net->steps[index].chained = can_chain(net, index);
    TRY(plan_places(net, &total));
    net->kept_bytes = net->arena.used;
    uint8_t *base = take(&net->arena, total, 1);
    net->scratch = take(&net->arena, net->scratch_bytes, 1);
    CHECK(base != NULL && net->scratch != NULL, DNAS_MEMORY);
    for (size_t slot = 0; slot <= net->step_count; slot++) {
        Value *value = &net->slots[slot];
        if (!value->is_kept) value->data = (float *)(void *)(base + net->slots[value->same_as].offset);
    }
    return DNAS_OK;
}

static dnas_status plan_profile(dnas_net *net, Node profile) {
    const Values *values = &net->values;
    net->is_ready = false;
    net->arena.used = net->mark, net->scratch_bytes = 0;
    net->profile = profile, net->profile_layers = field(values, profile, "layers");
    net->parts = field(values, profile, "parts");
    Node operations = field(values, profile, "operations"), steps = field(values, operations, "steps"), node;
    CHECK(steps != NONE, DNAS_NO_OPERATIONS);
    Items items = items_of(values, steps);
    CHECK(items.left <= MOST_STEPS, DNAS_UNSUPPORTED);
    net->step_count = (size_t)items.left;
    net->steps = take(&net->arena, net->step_count, sizeof(Step));
    net->slots = take(&net->arena, net->step_count + 1, sizeof(Value));
    CHECK(net->steps != NULL && net->slots != NULL, DNAS_MEMORY);
    memset(net->slots, 0, sizeof(Value));
    TRY(read_shape(values, field(values, operations, "input"), &net->slots[0].shape));
    for (size_t index = 0; index < net->step_count; index++) {
        CHECK(next(&items, &node), DNAS_DAMAGED);
        TRY(plan_step(net, index, node));
    }
    int64_t output;
    CHECK(within(values, field(values, operations, "output"), 0, (int64_t)net->step_count, &output), DNAS_DAMAGED);
    net->output = (size_t)output;
    return plan_memory(net);
}

static dnas_status fill_profile(dnas_net *net) {
    for (size_t index = 0; index < net->step_count; index++) {
        if (net->steps[index].layer != NULL) TRY(fill_layer(net, net->steps[index].layer));
    }
    net->is_ready = true;
    return DNAS_OK;
}

/* ---- What callers use ---- */

enum { HEADER_BYTES = 56, VERSION = 3 };

static dnas_status open_file(dnas_net *net, const uint8_t *file, size_t size) {
    CHECK(size >= 8 && memcmp(file, "DNASPACK", 8) == 0, DNAS_NOT_A_NET);
    CHECK(size >= HEADER_BYTES, DNAS_CUT_OFF);
    uint32_t version, length;
    uint64_t count;
    memcpy(&version, file + 8, 4), memcpy(&length, file + 12, 4), memcpy(&count, file + 16, 8);
    CHECK(version == VERSION, DNAS_OTHER_VERSION);
    CHECK(length <= size - HEADER_BYTES, DNAS_CUT_OFF);
    CHECK(count <= length, DNAS_DAMAGED);
    net->values = (Values){file + HEADER_BYTES, length, NULL, (uint32_t)count};
    TRY(index_values(&net->values, &net->arena));
    net->description = (Node)(count - 1);
    TRY(index_tensors(net, file + HEADER_BYTES + length, size - HEADER_BYTES - length));
    net->mark = net->arena.used;
    return DNAS_OK;
}

/* Reads `file`, which must stay as it is while the net is used, into `memory`, and makes its first profile ready.
 * Every profile is planned, so that no switch needs more memory. DNAS_MEMORY: give more. Checksums are not checked. */
int dnas_load(dnas_net **found, const void *file, size_t file_bytes, void *memory, size_t memory_bytes) {
    size_t before = (ALIGNMENT - (uintptr_t)memory % ALIGNMENT) % ALIGNMENT;
    CHECK(memory != NULL && memory_bytes > before, DNAS_MEMORY);
    Arena arena = {(uint8_t *)memory + before, memory_bytes - before, 0};
    dnas_net *net = take(&arena, 1, sizeof(dnas_net));
    CHECK(net != NULL, DNAS_MEMORY);
    memset(net, 0, sizeof *net);
    net->arena = arena;
    TRY(open_file(net, file, file_bytes));
    Node profiles = field(&net->values, net->description, "profiles"), profile;
    Items items = items_of(&net->values, profiles);
    CHECK(items.left > 0, DNAS_NO_PROFILE);
    while (next(&items, &profile)) TRY(plan_profile(net, profile));
    TRY(plan_profile(net, item(&net->values, profiles, 0)));
    TRY(fill_profile(net));
    *found = net;
    return DNAS_OK;
}

/* Lets the net run another profile; one that is unknown leaves it as it is. */
int dnas_switch(dnas_net *net, const char *profile) {
    Node told = field(&net->values, field(&net->values, net->description, "profiles"), profile);
    CHECK(told != NONE, DNAS_NO_PROFILE);
    TRY(plan_profile(net, told));
    return fill_profile(net);
}

/* Numbers of one input and of one output of the profile. */
size_t dnas_input_size(const dnas_net *net) { return size_of(&net->slots[0].shape); }
size_t dnas_output_size(const dnas_net *net) { return size_of(&net->slots[net->output].shape); }

/* Memory that the profile takes, the file aside. */
size_t dnas_memory_used(const dnas_net *net) { return net->arena.used; }

/* Memory of what is the same for every input: weights, scales and tables. The rest is that of activations. */
size_t dnas_memory_kept(const dnas_net *net) { return net->kept_bytes; }

#if !defined(DNAS_PORTABLE) && defined(__AVX__) && (defined(__clang__) || __GNUC__ >= 12)
#define SHUFFLED __builtin_shufflevector
/* Eight rows of eight numbers as columns, in three rounds of exchange. */
static inline void transpose_eight(const float *from, size_t columns, float *to, size_t rows) {
    Eight a[8], b[8];
    for (size_t at = 0; at < 8; at++) memcpy(&a[at], from + at * columns, sizeof *a);
    for (size_t at = 0; at < 8; at += 2) {
        b[at] = SHUFFLED(a[at], a[at + 1], 0, 8, 2, 10, 4, 12, 6, 14);
        b[at + 1] = SHUFFLED(a[at], a[at + 1], 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (size_t at = 0; at < 8; at++) {
        size_t low = at / 4 * 4 + at % 2;
        a[at] = at % 4 < 2 ? SHUFFLED(b[low], b[low + 2], 0, 1, 8, 9, 4, 5, 12, 13)
                           : SHUFFLED(b[low], b[low + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (size_t at = 0; at < 4; at++) {
        b[at] = SHUFFLED(a[at], a[at + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        b[at + 4] = SHUFFLED(a[at], a[at + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (size_t at = 0; at < 8; at++) memcpy(to + at * rows, &b[at], sizeof *b);
}
#else
static inline void transpose_eight(const float *from, size_t columns, float *to, size_t rows) {
    for (size_t at = 0; at < 64; at++) to[at % 8 * rows + at / 8] = from[at / 8 * columns + at % 8];
}
#endif

/* Rows of a matrix as columns. */
static void transpose(const float *from, size_t rows, size_t columns, float *to) {
    size_t row = 0;
    for (; row + 8 <= rows; row += 8) {
        size_t column = 0;
        for (; column + 8 <= columns; column += 8) {
            transpose_eight(from + row * columns + column, columns, to + column * rows + row, rows);
        }
        for (size_t at = column * 8; at < columns * 8; at++) {
            to[at / 8 * rows + row + at % 8] = from[(row + at % 8) * columns + at / 8];
        }
    }
    for (; row < rows; row++) {
        for (size_t column = 0; column < columns; column++) to[column * rows + row] = from[row * columns + column];
    }
}

/* Runs `samples` inputs, each with channels before space as PyTorch has them, in fp32; outputs likewise. */
int dnas_run(dnas_net *net, const float *inputs, size_t samples, float *outputs) {
    CHECK(net->is_ready, DNAS_NO_PROFILE);
    const Value *in = &net->slots[0], *out = &net->slots[net->output];
    size_t inside = positions_of(&in->shape), outside = positions_of(&out->shape);
    for (; samples > 0; samples--, inputs += size_of(&in->shape), outputs += size_of(&out->shape)) {
        transpose(inputs, in->shape.channels, inside, in->data);
        for (size_t index = 0; index < net->step_count; index++) {
            if (!net->steps[index].chained && net->steps[index].kind != PARAMETER) run_step(net, index);
        }
        transpose(out->data, outside, out->shape.channels, outputs);
    }
    return DNAS_OK;
}
