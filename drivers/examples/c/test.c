// Tests of driver.c, compiled for this machine: `make test`. The settings and the bindings' one helper are stood in for here.

#include "bindings/driver.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

typedef exports_wasmvol_driver_volumes_error_t Error;
typedef exports_wasmvol_driver_volumes_plan_t Plan;
typedef wasmvol_driver_types_option_value_t Option;

// What the operator has set; NULL is nothing.
static const char *ceiling, *ordinary;

bool wasmvol_driver_settings_get(driver_string_t *key, driver_string_t *value)
{
    const char *text = memcmp(key->ptr, "ceiling", key->len) == 0 ? ceiling : ordinary;
    if (text != NULL)
        driver_string_dup(value, text);
    return text != NULL;
}

void driver_string_dup(driver_string_t *to, const char *from)
{
    to->len = strlen(from);
    to->ptr = malloc(to->len + 1);
    memcpy(to->ptr, from, to->len + 1);
}

static driver_string_t text(const char *from)
{
    driver_string_t to;
    driver_string_dup(&to, from);
    return to;
}

static Option size(uint64_t bytes)
{
    return (Option){.key = text("size"), .value = {.tag = WASMVOL_DRIVER_TYPES_VALUE_SIZE, .val = {.size = bytes}}};
}

static Option inodes(int64_t number)
{
    return (Option){.key = text("inodes"), .value = {.tag = WASMVOL_DRIVER_TYPES_VALUE_NUMBER, .val = {.number = number}}};
}

static Option exec(bool boolean)
{
    return (Option){.key = text("exec"), .value = {.tag = WASMVOL_DRIVER_TYPES_VALUE_BOOLEAN, .val = {.boolean = boolean}}};
}

static Option mode(const char *octal)
{
    return (Option){.key = text("mode"), .value = {.tag = WASMVOL_DRIVER_TYPES_VALUE_TEXT, .val = {.text = text(octal)}}};
}

// Creates a volume, and asks for its plan twice; false and the error's message if it is refused.
static bool make(Option *options, size_t count, Plan *plan, char *message)
{
    exports_wasmvol_driver_volumes_list_option_value_t list = {.ptr = options, .len = count};
    driver_string_t id = text("0123456789abcdef0123456789abcdef"), name = text("data");
    exports_wasmvol_driver_volumes_created_t created;
    Error error;
    if (!exports_wasmvol_driver_volumes_create(&id, &name, &list, &created, &error)) {
        memcpy(message, error.message.ptr, error.message.len);
        message[error.message.len] = '\0';
        return false;
    }
    assert(created.storage.tag == WASMVOL_DRIVER_TYPES_STORAGE_NONE);
    exports_wasmvol_driver_volumes_volume_t volume = {.id = id, .name = name, .state = {created.state.ptr, created.state.len}};
    volume.options.ptr = options;
    volume.options.len = count;
    Plan again;
    assert(exports_wasmvol_driver_volumes_path(&volume, plan, &error));
    // The host may ask at any time, and goes by the first answer.
    ceiling = "1", ordinary = "1";
    assert(exports_wasmvol_driver_volumes_path(&volume, &again, &error));
    assert(plan->source.val.tmpfs.size.val == again.source.val.tmpfs.size.val);
    return true;
}

static void a_volume_has_the_size_and_the_limits_that_were_asked_for(void)
{
    Option options[] = {exec(true), inodes(100), mode("0750"), size(1 << 20)};
    Plan plan;
    char message[512];
    ceiling = ordinary = NULL;
    assert(make(options, COUNT(options), &plan, message));
    assert(plan.source.tag == WASMVOL_DRIVER_TYPES_SOURCE_TMPFS);
    assert(plan.source.val.tmpfs.size.is_some && plan.source.val.tmpfs.size.val == 1 << 20);
    assert(plan.source.val.tmpfs.inodes.is_some && plan.source.val.tmpfs.inodes.val == 100);
    assert(plan.source.val.tmpfs.owner.mode == 0750);
    assert(!plan.no_exec && !plan.read_only && !plan.subpath.is_some && !plan.id_map.is_some);
}

static void a_volume_without_size_gets_what_the_operator_has_set(void)
{
    const struct {
        const char *ceiling, *ordinary;
        uint64_t size;
    } cases[] = {{NULL, NULL, 64 << 20}, {NULL, "4096", 4096}, {"8k", NULL, 8192}, {"8192", "16384", 8192}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        Option options[] = {exec(false), mode("1777")};
        Plan plan;
        char message[512];
        ceiling = cases[i].ceiling, ordinary = cases[i].ordinary;
        assert(make(options, COUNT(options), &plan, message));
        assert(plan.source.val.tmpfs.size.val == cases[i].size);
        assert(!plan.source.val.tmpfs.inodes.is_some && plan.no_exec);
    }
}

#define NO_SIZE "setting `ceiling` must be a size of at least 1 byte, such as `64m`: the operator can mend it with `wasmvol driver set NAME ceiling=SIZE`"

static void a_setting_is_written_as_an_option_is(void)
{
    const struct {
        const char *ordinary;
        uint64_t size;
    } cases[] = {
        {"512b", 512}, {"64k", 64 << 10}, {"64K", 64 << 10}, {"64kb", 64 << 10}, {"64KiB", 64 << 10}, {"10MB", 10 << 20},
        {"1G", UINT64_C(1) << 30}, {"2TiB", UINT64_C(2) << 40}, {"18446744073709551615", UINT64_MAX},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        Option options[] = {exec(false), mode("1777")};
        Plan plan;
        char message[512];
        ceiling = "18446744073709551615", ordinary = cases[i].ordinary;
        assert(make(options, COUNT(options), &plan, message));
        assert(plan.source.val.tmpfs.size.val == cases[i].size);
    }
}

static void an_error_says_what_to_do(void)
{
    const struct {
        Option option;
        const char *ceiling, *message;
    } cases[] = {
        {size(0), NULL, "option `size`: must be at least 1 byte"},
        {size(4097), "4096", "option `size`: the operator's ceiling is 4096 bytes"},
        {inodes(0), NULL, "option `inodes` must be at least 1: `0`"},
        {mode("9"), NULL, "option `mode` must be octal and at most 7777, as in `0755`: `9`"},
        {mode("10000"), NULL, "option `mode` must be octal and at most 7777, as in `0755`: `10000`"},
        {mode("+7"), NULL, "option `mode` must be octal and at most 7777, as in `0755`: `+7`"},
        {size(1), "0", NO_SIZE},
        {size(1), "", NO_SIZE},
        {size(1), "m", NO_SIZE},
        {size(1), "1x", NO_SIZE},
        {size(1), "1.5g", NO_SIZE},
        {size(1), "1 g", NO_SIZE},
        {size(1), "1ib", NO_SIZE},
        {size(1), "kib", NO_SIZE},
        {size(1), "16777216t", NO_SIZE},
        {size(1), "18446744073709551616", NO_SIZE},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        // The first of a key counts.
        Option options[] = {cases[i].option, exec(false), mode("1777")};
        Plan plan;
        char message[512];
        ceiling = cases[i].ceiling, ordinary = NULL;
        assert(!make(options, COUNT(options), &plan, message));
        if (strcmp(message, cases[i].message) != 0)
            fprintf(stderr, "said: %s\n", message);
        assert(strcmp(message, cases[i].message) == 0);
    }
}

static void a_state_of_another_drivers_is_refused(void)
{
    exports_wasmvol_driver_volumes_volume_t volume = {0};
    Plan plan;
    Error error;
    assert(!exports_wasmvol_driver_volumes_path(&volume, &plan, &error));
    assert(error.code == WASMVOL_DRIVER_TYPES_ERROR_CODE_INTERNAL);
}

int main(void)
{
    a_volume_has_the_size_and_the_limits_that_were_asked_for();
    a_volume_without_size_gets_what_the_operator_has_set();
    a_setting_is_written_as_an_option_is();
    an_error_says_what_to_do();
    a_state_of_another_drivers_is_refused();
    puts("every test passed");
    return 0;
}
