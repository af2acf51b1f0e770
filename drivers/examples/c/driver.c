// Memory with a ceiling: `docker volume create -d wasmvol -o driver=example-c -o size=64m data`.
//
// The operator sets the ceiling, and what a volume gets whose user asked for no size. Every call is answered by an instance of its own:
// what must be remembered are the volume's options, and the bytes that `create` returned as its state. An instance ends with its call,
// and all of its memory with it: nothing is freed here.

#include "bindings/driver.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

// Most bytes of a volume, and what one gets without `size`, unless the operator has set others.
#define CEILING (UINT64_C(1) << 30)
#define DEFAULT (UINT64_C(64) << 20)

// What the bindings call by longer names.
typedef exports_wasmvol_driver_volumes_description_t Description;
typedef exports_wasmvol_driver_volumes_list_option_value_t OptionList;
typedef exports_wasmvol_driver_volumes_created_t Created;
typedef exports_wasmvol_driver_volumes_volume_t Volume;
typedef exports_wasmvol_driver_volumes_plan_t Plan;
typedef exports_wasmvol_driver_volumes_reclaim_t Reclaim;
typedef exports_wasmvol_driver_volumes_list_found_t Found;
typedef exports_wasmvol_driver_volumes_error_t Error;
typedef wasmvol_driver_types_option_spec_t OptionSpec;
typedef wasmvol_driver_types_option_value_t OptionValue;
typedef wasmvol_driver_types_value_t Value;

// A volume's options. The bindings have two types for this list.
typedef struct {
    const OptionValue *ptr;
    size_t len;
} Options;

static driver_string_t text(const char *from)
{
    driver_string_t to;
    driver_string_dup(&to, from);
    return to;
}

// Answers a call with an error: one line in lower case, without the verb and the volume's name. `code` is what the host decides by.
static bool failed(Error *error, uint8_t code, const char *format, ...)
{
    // Room for one option's text, which has 4096 bytes at most, and what is said of it: what is cut may end inside of a character.
    char message[4096 + 256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    *error = (Error){.code = code, .message = text(message)};
    return false;
}

#define refused(error, ...) failed(error, WASMVOL_DRIVER_TYPES_ERROR_CODE_INVALID_OPTION, __VA_ARGS__)
#define broken(error, ...) failed(error, WASMVOL_DRIVER_TYPES_ERROR_CODE_INTERNAL, __VA_ARGS__)

// Whether bytes are digits of this base and mean a number of at most `most`.
static bool number(const uint8_t *bytes, size_t len, unsigned base, uint64_t most, uint64_t *to)
{
    *to = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned digit = bytes[i] - (unsigned)'0';
        if (digit >= base || *to > (most - digit) / base)
            return false;
        *to = *to * base + digit;
    }
    return len > 0;
}

// What may stand behind a size, in capitals as well, and the power of two that it means: as in an option.
static const struct {
    const char *name;
    unsigned power;
} UNITS[] = {
    {"", 0}, {"b", 0}, {"k", 10}, {"kb", 10}, {"kib", 10}, {"m", 20}, {"mb", 20}, {"mib", 20},
    {"g", 30}, {"gb", 30}, {"gib", 30}, {"t", 40}, {"tb", 40}, {"tib", 40},
};

// Whether bytes are a size, as people write it.
static bool bytes_of(const uint8_t *bytes, size_t len, uint64_t *to)
{
    size_t digits = 0;
    while (digits < len && bytes[digits] >= '0' && bytes[digits] <= '9')
        digits++;
    const char *unit = (const char *)bytes + digits;
    for (size_t i = 0; i < sizeof UNITS / sizeof *UNITS; i++) {
        unsigned power = UNITS[i].power;
        if (strlen(UNITS[i].name) != len - digits || strncasecmp(UNITS[i].name, unit, len - digits) != 0)
            continue;
        if (!number(bytes, digits, 10, UINT64_MAX >> power, to))
            return false;
        *to <<= power;
        return true;
    }
    return false;
}

// A size that the operator wrote with `driver load --setting KEY=SIZE` or `driver set`.
static bool setting(const char *key, uint64_t otherwise, uint64_t *to, Error *error)
{
    driver_string_t name = text(key), value;
    *to = otherwise;
    if (!wasmvol_driver_settings_get(&name, &value) || (bytes_of(value.ptr, value.len, to) && *to > 0))
        return true;
    return broken(error, "setting `%s` must be a size of at least 1 byte, such as `64m`: "
                         "the operator can mend it with `wasmvol driver set NAME %s=SIZE`", key, key);
}

// The value of an option, as the host has parsed it; none where it has neither a value nor a default.
static const Value *value(Options options, const char *key)
{
    for (size_t i = 0; i < options.len; i++) {
        const driver_string_t *name = &options.ptr[i].key;
        if (name->len == strlen(key) && memcmp(name->ptr, key, name->len) == 0)
            return &options.ptr[i].value;
    }
    return NULL;
}

static OptionSpec option(const char *key, uint8_t type, const char *otherwise, const char *help)
{
    OptionSpec spec = {.key = text(key), .value_type = type, .help = text(help)};
    spec.default_.is_some = otherwise != NULL;
    if (otherwise != NULL)
        spec.default_.val = text(otherwise);
    return spec;
}

void exports_wasmvol_driver_volumes_describe(Description *description)
{
    const OptionSpec options[] = {
        option("size", WASMVOL_DRIVER_TYPES_VALUE_TYPE_SIZE, NULL, "most bytes; without it what the operator has set"),
        option("inodes", WASMVOL_DRIVER_TYPES_VALUE_TYPE_NUMBER, NULL, "most files and directories"),
        option("exec", WASMVOL_DRIVER_TYPES_VALUE_TYPE_BOOLEAN, "false", "programs may run from it"),
        option("mode", WASMVOL_DRIVER_TYPES_VALUE_TYPE_TEXT, "1777", "permission bits, octal"),
    };
    *description = (Description){
        .name = text("example-c"),
        .version = text("0.1.0"),
        .help = text("memory, up to the operator's ceiling"),
    };
    description->options.len = sizeof options / sizeof *options;
    description->options.ptr = malloc(sizeof options);
    memcpy(description->options.ptr, options, sizeof options);
}

// How a volume of this size is mounted: memory.
static bool planned(Options options, uint64_t size, Plan *plan, Error *error)
{
    const Value *inodes = value(options, "inodes");
    if (inodes != NULL && inodes->val.number < 1)
        return refused(error, "option `inodes` must be at least 1: `%" PRId64 "`", inodes->val.number);
    // These two have defaults.
    const Value *exec = value(options, "exec"), *mode = value(options, "mode");
    driver_string_t octal = mode->val.text;
    uint64_t bits;
    if (!number(octal.ptr, octal.len, 8, 07777, &bits))
        return refused(error, "option `mode` must be octal and at most 7777, as in `0755`: `%.*s`", (int)octal.len, octal.ptr);
    *plan = (Plan){.no_exec = !exec->val.boolean};
    plan->source.tag = WASMVOL_DRIVER_TYPES_SOURCE_TMPFS;
    plan->source.val.tmpfs = (wasmvol_driver_types_tmpfs_t){
        .size = {.is_some = true, .val = size},
        .inodes = {.is_some = inodes != NULL, .val = inodes != NULL ? (uint64_t)inodes->val.number : 0},
        .owner = {.mode = (uint32_t)bits},
    };
    return true;
}

bool exports_wasmvol_driver_volumes_create(driver_string_t *id, driver_string_t *name, OptionList *list, Created *created, Error *error)
{
    (void)id, (void)name;
    Options options = {list->ptr, list->len};
    uint64_t ceiling, size;
    if (!setting("ceiling", CEILING, &ceiling, error))
        return false;
    const Value *given = value(options, "size");
    if (given != NULL) {
        size = given->val.size;
    } else {
        if (!setting("default", DEFAULT, &size, error))
            return false;
        size = size < ceiling ? size : ceiling;
    }
    // The kernel would take it for "no limit".
    if (size == 0)
        return refused(error, "option `size`: must be at least 1 byte");
    if (size > ceiling)
        return refused(error, "option `size`: the operator's ceiling is %" PRIu64 " bytes", ceiling);
    // The operator may set another default later: this volume keeps what it was made with.
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, size);
    driver_string_t state = text(digits);
    created->storage.tag = WASMVOL_DRIVER_TYPES_STORAGE_NONE;
    created->state.ptr = state.ptr;
    created->state.len = state.len;
    // What could not be mounted later is refused now.
    Plan plan;
    return planned(options, size, &plan, error);
}

bool exports_wasmvol_driver_volumes_remove(Volume *volume, Reclaim *reclaim, Error *error)
{
    (void)volume, (void)error;
    *reclaim = WASMVOL_DRIVER_TYPES_RECLAIM_DELETE;
    return true;
}

bool exports_wasmvol_driver_volumes_path(Volume *volume, Plan *plan, Error *error)
{
    uint64_t size;
    if (!number(volume->state.ptr, volume->state.len, 10, UINT64_MAX, &size))
        return broken(error, "the volume's state was not written by this driver");
    return planned((Options){volume->options.ptr, volume->options.len}, size, plan, error);
}

bool exports_wasmvol_driver_volumes_list(Found *found, Error *error)
{
    (void)error;
    // Its volumes live in the host's records alone.
    *found = (Found){0};
    return true;
}
