//! The heap of this process, where the records of clients are.

/// Has the allocator give back the end of a heap that is free, for all of this process's threads.
/// Left alone, glibc learns from the first large table that is freed to keep up to 64 MiB there, in
/// the heap of each thread, where `trim_heap` does not look.
pub fn tune_heap() {
    #[cfg(target_env = "gnu")]
    for (what, bytes) in [(libc::M_TRIM_THRESHOLD, 1 << 20), (libc::M_MMAP_THRESHOLD, 256 << 10)] {
        // SAFETY: it sets a number, before there is another thread.
        unsafe {
            libc::mallopt(what, bytes);
        }
    }
}

/// Gives what is free in this process's heap back to the machine. The allocator does not do so by
/// itself where a block that is in use lies above.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only looks at what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
