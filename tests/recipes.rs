//! The recipes of docs/containers.md work as they stand there.

mod common;

use common::machine::{NOBODY, Programs, possible, recipe, says, told};

const CONTAINERS: &str = "docs/containers.md";

/// A root file system, `/run/rootfs`: this machine's and the programs, in a layer over it. And what
/// lets LXC and podman run wherever a test may: no control groups (podman's crun takes no hybrid of
/// both versions, and some would be left behind), and no limits that take CAP_SYS_RESOURCE.
const ROOTFS: &str = r#"
mount -t tmpfs tmpfs /sys/fs/cgroup
mkdir /run/upper /run/work /run/rootfs
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay /run/rootfs
cp "$PROGRAMS"/* /run/rootfs/usr/bin/
cat >/run/containers.conf <<EOF
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
EOF
cat >/run/storage.conf <<EOF
[storage]
driver = "vfs"
graphroot = "/run/storage"
runroot = "/run/storage-run"
EOF
export CONTAINERS_CONF=/run/containers.conf CONTAINERS_STORAGE_CONF=/run/storage.conf
"#;

#[test]
fn a_daemon_in_a_container_serves_users_of_every_uid() {
    if !possible(&["bwrap"]) {
        return;
    }
    let programs = Programs::new();
    let recipe = recipe(CONTAINERS, "The daemon in the container");
    let output = programs.run("", &recipe, &[]);
    says(
        &output,
        &[
            "/dev/binderfs/binder",
            "/dev/binderfs/binder-control",
            "your-program: answered on /dev/binderfs/binder",
            "your-program: answered on /dev/binder",
            "your-program: answered on /dev/binderfs/hwbinder",
        ],
    );
    // The capability is what other users need.
    let without = recipe.replace(" --cap-add CAP_SYS_PTRACE", "");
    assert_ne!(without, recipe);
    let output = programs.run("", &without, &[]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.matches(": answered").count(), 2, "{}", told(&output));
    assert!(!output.status.success(), "{}", told(&output));
}

#[test]
fn a_daemon_outside_gives_each_container_a_world_of_its_own() {
    if !possible(&["bwrap"]) {
        return;
    }
    let output = Programs::new().run("", &recipe(CONTAINERS, "The daemon outside"), &[]);
    says(
        &output,
        &[
            "called by uid 0",
            "your-program: answered on /dev/binderfs/binder",
            "fb-ping: /dev/binderfs/binder: 10000 transactions, 0 failed",
        ],
    );
}

#[test]
fn lxc_containers_have_links_and_worlds_of_their_own() {
    if !possible(&["lxc-execute"]) {
        return;
    }
    let output = Programs::new().run(ROOTFS, &recipe(CONTAINERS, "LXC and Waydroid"), &[]);
    says(
        &output,
        &[
            "your-program: answered on /dev/binder",
            "your-program: answered on /dev/vndbinder",
            "your-program: answered on /dev/binderfs/hwbinder",
            "fb-ping: /dev/binder: 10000 transactions, 0 failed",
        ],
    );
}

#[test]
fn an_lxc_container_has_its_own_daemon() {
    if !possible(&["lxc-execute"]) {
        return;
    }
    let output =
        Programs::new().run(ROOTFS, &recipe(CONTAINERS, "LXC, the daemon in the container"), &[]);
    says(&output, &["your-program: answered on /dev/binder"]);
}

#[test]
fn a_podman_container_is_given_the_directory() {
    if !possible(&["podman", "crun"]) {
        return;
    }
    let programs = Programs::new();
    let recipe = recipe(CONTAINERS, "Docker and podman");
    let lines = [
        "your-program: answered on /dev/binderfs/binder",
        "your-program: answered on /dev/binder",
        "your-program: answered on /dev/binderfs/binder",
    ];
    says(&programs.run(ROOTFS, &recipe, &[]), &lines);
    // What is printed for docker podman takes as well.
    let for_docker = recipe.replace("container-config podman", "container-config docker");
    assert_ne!(for_docker, recipe);
    says(&programs.run(ROOTFS, &for_docker, &[]), &lines);
}

#[test]
fn in_a_user_namespace_with_many_uids_each_is_seen_by_its_own_name() {
    if !possible(&["newuidmap"]) {
        return;
    }
    let programs = Programs::new();
    let setup = "
        echo 65534:200000:65536 >/run/subuid
        mount --bind /run/subuid /etc/subuid && mount --bind /run/subuid /etc/subgid
        fakebinderd --door fuse --name binder --mount /dev/binderfs --daemonize --log /run/log";
    let recipe = recipe(CONTAINERS, "A user namespace with many uids");
    says(&programs.run(setup, &recipe, &NOBODY), &["called by uid 1000"]);
}

#[test]
fn an_ordinary_user_has_a_daemon() {
    if !possible(&["fusermount3"]) {
        return;
    }
    let programs = Programs::new();
    let recipe = recipe(CONTAINERS, "Without root");
    let lines = [
        "your-program: answered on /run/user/65534/fakebinderfs/binder",
        "fb-ping: /run/user/65534/fakebinderfs/binder: 10000 transactions, 0 failed",
    ];
    let setup = "export XDG_RUNTIME_DIR=/run/user/65534";
    says(&programs.run(setup, &recipe, &NOBODY), &lines);
    // The same with the library.
    let call = "your-program \"$XDG";
    let with_library = recipe.replace(call, &format!("LD_PRELOAD=libfakebinder_preload.so {call}"));
    assert_ne!(with_library, recipe);
    says(&programs.run(setup, &with_library, &NOBODY), &lines);
}

#[test]
fn an_ordinary_user_has_a_daemon_at_fixed_paths_in_a_namespace() {
    if !possible(&[]) {
        return;
    }
    let programs = Programs::new();
    let lines = [
        "your-program: answered on /dev/binder",
        "fb-ping: /dev/binderfs/binder: 10000 transactions, 0 failed",
    ];
    says(&programs.run("", &recipe(CONTAINERS, "Without root, at fixed paths"), &NOBODY), &lines);
}
