//! How much memory there is for all clients together: what the daemon's control group may have, on
//! either hierarchy, and what the machine has left.

use std::fs;
use std::path::{Path, PathBuf};

/// The hard memory limit of the daemon's control group, in bytes, if it or a group above it has
/// one.
///
/// Past the limit the kernel kills: pages of buffers cannot be swapped out where there is no swap,
/// and the kernel gives up too soon for a pressure event to help.
pub fn group_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    limit_files(&groups, &mounts)
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
        // Version 1 writes "no limit" as a number that is larger than any memory.
        .filter(|limit| *limit < 1 << 60)
        .min()
}

/// Memory that can be had without swapping, as of now, in bytes.
pub fn available_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A hierarchy of control groups with a memory controller, as it is mounted here.
struct Hierarchy {
    /// The group that the mount point stands for.
    root: PathBuf,
    mount: PathBuf,
    file: &'static str,
}

/// From `/proc/self/cgroup` and `/proc/self/mountinfo`: the files that may hold a limit, of the
/// daemon's groups and of all visible groups above them.
fn limit_files(groups: &str, mounts: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for hierarchy in mounts.lines().filter_map(hierarchy) {
        let own = groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
            let is_it = match hierarchy.file {
                "memory.max" => controllers.is_empty(),
                _ => controllers.split(',').any(|controller| controller == "memory"),
            };
            is_it.then(|| Path::new(group))
        });
        let Some(own) = own else { continue };
        // A container may see its own group as the mount point, but under the name that it has on
        // the host.
        let below = own.strip_prefix(&hierarchy.root).unwrap_or(Path::new(""));
        let group = hierarchy.mount.join(below);
        let upwards = group.ancestors().take_while(|group| group.starts_with(&hierarchy.mount));
        files.extend(upwards.map(|group| group.join(hierarchy.file)));
    }
    files
}

fn hierarchy(mount: &str) -> Option<Hierarchy> {
    let (fields, file_system) = mount.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    let mut file_system = file_system.split(' ');
    let (kind, options) = (file_system.next()?, file_system.nth(1).unwrap_or_default());
    let file = match kind {
        "cgroup2" => "memory.max",
        "cgroup" if options.split(',').any(|option| option == "memory") => "memory.limit_in_bytes",
        _ => return None,
    };
    Some(Hierarchy { root: root.into(), mount: point.into(), file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(groups: &str, mounts: &str) -> Vec<String> {
        let files = limit_files(groups, mounts);
        files.iter().map(|file| file.display().to_string()).collect()
    }

    #[test]
    fn the_unified_hierarchy_is_looked_at_up_to_its_root() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            files("0::/user.slice/one.scope\n", mounts),
            [
                "/sys/fs/cgroup/user.slice/one.scope/memory.max",
                "/sys/fs/cgroup/user.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        // In a container of its own the root is a group that has a limit.
        assert_eq!(files("0::/\n", mounts), ["/sys/fs/cgroup/memory.max"]);
    }

    #[test]
    fn version_1_has_a_hierarchy_of_its_own_for_memory() {
        let mounts = "31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      35 24 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      36 24 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let groups = "5:memory:/small/one\n4:cpu,cpuacct:/fast\n0::/init.scope\n";
        assert_eq!(
            files(groups, mounts),
            [
                "/sys/fs/cgroup/unified/init.scope/memory.max",
                "/sys/fs/cgroup/unified/memory.max",
                "/sys/fs/cgroup/memory/small/one/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/small/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            ]
        );
        let container =
            "36 24 0:32 /docker/4711 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let group = "5:memory:/docker/4711\n";
        assert_eq!(files(group, container), ["/sys/fs/cgroup/memory/memory.limit_in_bytes"]);
    }

    #[test]
    fn there_is_some_memory_left() {
        assert!(available_memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
