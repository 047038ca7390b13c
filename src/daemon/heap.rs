//! The allocator of the daemon's program.

/// An allocator that gives free memory back to the machine little by little. glibc's keeps it, and
/// where it is told not to (`malloc_trim`), every thread that wants memory waits until it has gone
/// through all.
#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A string of C: the allocator finds its options by the name of a symbol.
#[repr(transparent)]
struct HeapOptions(*const std::ffi::c_char);

// SAFETY: the string is a constant, and only read.
unsafe impl Sync for HeapOptions {}

/// Memory that was free for a second is given back, by a thread of the allocator's own, which is
/// started when the daemon has given up what it does not need.
#[unsafe(export_name = "_rjem_malloc_conf")]
static HEAP_OPTIONS: HeapOptions = HeapOptions(
    c"max_background_threads:1,dirty_decay_ms:1000,muzzy_decay_ms:0,thp:never".as_ptr(),
);

/// Starts the allocator's thread.
pub fn start() -> Result<(), tikv_jemalloc_ctl::Error> {
    tikv_jemalloc_ctl::background_thread::write(true)
}
