//! The LRU of reclaimable pages, memory-pressure sources, the reclaim thread.
