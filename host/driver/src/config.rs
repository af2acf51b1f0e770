//! The one configuration of wasmtime, and the limits of a call.
//!
//! The engine that calls and the engine that compiles in the child process both start from [`config`]: what the compiler assumes
//! about memory and interrupts is part of the compiled code, and wasmtime refuses code made under other assumptions.

use wasmtime::{Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

/// Most linear memory of one instance, in bytes. A Rust driver takes 1.1 MiB, one in Python 20 to 40.
pub(crate) const MEMORY_MAX: usize = 64 << 20;
/// Most linear memories of one call: the driver's, and one of an adapter.
pub(crate) const MEMORIES_MAX: usize = 2;
/// Most tables of one call: components made of shared libraries have a handful.
pub(crate) const TABLES_MAX: usize = 8;
/// Most elements of one table: Python's interpreter has 9 000 functions in one.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Most core instances of one call. A Rust component has 4, one made of shared libraries 30.
pub(crate) const INSTANCES_MAX: usize = 48;
/// Stack of WebAssembly code, in bytes. The host's own functions keep 1.5 MiB of [`CALL_STACK`].
pub(crate) const STACK_MAX: usize = 512 << 10;
/// Stack of a call, in bytes: the host's own functions run on it, too.
const CALL_STACK: usize = 2 << 20;
/// Address space behind each memory that traps. Loads with a constant offset below it need one comparison instead of two.
const GUARD: u64 = 1 << 20;
/// Bytes of a used memory that stay with its pool slot, to be cleared by the kernel in one call instead of faulted in anew.
const KEEP_RESIDENT: usize = 2 << 20;

/// What both engines share: everything that shapes the compiled code.
pub(crate) fn config() -> Config {
    let mut config = Config::new();
    config
        // An interrupt is the only thing that ends a loop in a driver.
        .epoch_interruption(true)
        .max_wasm_stack(STACK_MAX)
        .async_stack_size(CALL_STACK)
        // A reservation of the size of the limit instead of 4 GiB: a daemon under an address space limit still gets its pool. It
        // costs a comparison at each access: a quarter in a loop of nothing else, nothing that shows in a call.
        .memory_reservation(MEMORY_MAX as u64)
        .memory_guard_size(GUARD)
        .memory_reservation_for_growth(0)
        .memory_may_move(false)
        // What no driver needs is not there to be broken. Garbage collection and threads are not even compiled in.
        .wasm_memory64(false)
        .wasm_relaxed_simd(false)
        .wasm_custom_page_sizes(false)
        .shared_memory(false)
        // Errors are one line: nobody would see a backtrace, so nothing is kept for one.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .native_unwind_info(false);
    config
}

/// [`config`] with room for `calls_max` calls at once, reserved at start: a call then costs no mmap and no munmap.
pub(crate) fn pooled(calls_max: u32) -> Config {
    let each = |count: usize| calls_max.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(calls_max)
        .total_core_instances(each(INSTANCES_MAX))
        .total_memories(each(MEMORIES_MAX))
        .total_tables(each(TABLES_MAX))
        .total_stacks(calls_max)
        .max_memory_size(MEMORY_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(TABLE_ELEMENTS_MAX * size_of::<usize>())
        .pagemap_scan(Enabled::Auto);
    let mut config = config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}
