//! Generates Rust bindings for `<linux/fuse.h>` and `<linux/android/binder.h>`.
//!
//! Both headers come from the kernel's user-space API package (Debian: linux-libc-dev) and
//! bindgen reads them through libclang (Debian: libclang-dev). What is newer than the oldest
//! headers that we build with is added by hand in `src/uapi.rs`.
//!
//! Whoever builds without `make` has not run `scripts/install-deps`: whatever is missing ends the
//! build with one line that says what, and which package brings it.

use bindgen::callbacks::{DeriveInfo, ParseCallbacks};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::{env, panic, process};

/// What travels as bytes. The compiler refuses one that has padding.
const RECORDS: [&str; 38] = [
    "binder_extended_error",
    "binder_freeze_info",
    "binder_frozen_status_info",
    "binder_node_debug_info",
    "binder_node_info_for_ref",
    "binder_version",
    "binder_write_read",
    "cuse_init_in",
    "cuse_init_out",
    "fuse_attr",
    "fuse_attr_out",
    "fuse_batch_forget_in",
    "fuse_entry_out",
    "fuse_flush_in",
    "fuse_forget_in",
    "fuse_forget_one",
    "fuse_in_header",
    "fuse_init_in",
    "fuse_interrupt_in",
    "fuse_ioctl_in",
    "fuse_ioctl_iovec",
    "fuse_ioctl_out",
    "fuse_kstatfs",
    "fuse_mknod_in",
    "fuse_notify_inval_entry_out",
    "fuse_notify_inval_inode_out",
    "fuse_notify_poll_wakeup_out",
    "fuse_open_in",
    "fuse_out_header",
    "fuse_poll_in",
    "fuse_poll_out",
    "fuse_read_in",
    "fuse_release_in",
    "fuse_rename2_in",
    "fuse_rename_in",
    "fuse_setattr_in",
    "fuse_statfs_out",
    "fuse_write_in",
];

/// Has them turned into bytes and back by a crate that checks what it promises.
#[derive(Debug)]
struct Records;

impl ParseCallbacks for Records {
    fn add_derives(&self, info: &DeriveInfo<'_>) -> Vec<String> {
        match RECORDS.contains(&info.name) {
            true => ["FromBytes", "IntoBytes", "Immutable", "KnownLayout"]
                .map(|derived| format!("zerocopy::{derived}"))
                .to_vec(),
            false => Vec::new(),
        }
    }
}

const HEADERS: [&str; 2] = ["linux/fuse.h", "linux/android/binder.h"];

/// What clang-sys looks for, and where, depends on these.
const LIBCLANG_VARIABLES: [&str; 4] =
    ["LIBCLANG_PATH", "LLVM_CONFIG_PATH", "LD_LIBRARY_PATH", "LIBRARY_PATH"];

/// Stops the build with one line.
fn fail(line: &str) -> ! {
    println!("cargo::error={}", line.replace('\n', " "));
    process::exit(1);
}

fn missing(what: &str, package: &str) -> ! {
    fail(&format!("{what}; install it (Debian, Ubuntu: apt-get install {package})"))
}

/// Loads libclang as bindgen would, which panics when there is none. Bindgen takes the one that is
/// loaded, so what is asked here is what it asks.
fn load_libclang() {
    let Err(reason) = clang_sys::load() else { return };
    if let Some(path) = env::var_os("LIBCLANG_PATH") {
        fail(&format!(
            "LIBCLANG_PATH={} has no libclang that can be loaded: unset it, or name a folder with \
             libclang.so or such ({reason})",
            path.display()
        ));
    }
    // A library that is there but cannot be loaded has a reason that is worth reading.
    let reason = match reason.contains("could not be opened") || !reason.contains("(invalid: [])") {
        true => format!(" or of no use: {reason}"),
        false => String::new(),
    };
    let what =
        format!("libclang, which bindgen needs to read the kernel headers, is missing{reason}");
    missing(&what, "libclang-dev")
}

fn generate() -> Result<bindgen::Bindings, String> {
    let includes: String = HEADERS.iter().map(|h| format!("#include <{h}>\n")).collect();
    let builder = bindgen::Builder::default()
        .header_contents("uapi.h", &includes)
        .allowlist_type("fuse_.*|cuse_.*|binder_.*|flat_binder_object")
        .allowlist_var("FUSE_.*|CUSE_.*|FATTR_.*|FOPEN_.*|BINDER_.*|FLAT_BINDER_.*|B[CR]_.*|TF_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .parse_callbacks(Box::new(Records))
        .layout_tests(true)
        .wrap_unsafe_ops(true)
        .generate_comments(false);
    // A libclang that is too old lacks functions that bindgen calls, which is a panic there.
    panic::set_hook(Box::new(|_| {}));
    let bindings = panic::catch_unwind(AssertUnwindSafe(|| builder.generate()));
    drop(panic::take_hook());
    match bindings {
        Ok(bindings) => bindings.map_err(|error| error.to_string()),
        Err(panic) => Err(panic.downcast_ref::<String>().cloned().unwrap_or_default()),
    }
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for variable in LIBCLANG_VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    load_libclang();
    let bindings = generate().unwrap_or_else(|error| {
        let absent = HEADERS.iter().find(|h| error.contains(&format!("'{h}' file not found")));
        match absent {
            Some(header) => {
                missing(&format!("the kernel header <{header}> is missing"), "linux-libc-dev")
            }
            None => missing(
                &format!("bindgen could not read the kernel headers: {error}"),
                "linux-libc-dev libclang-dev",
            ),
        }
    });
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("uapi.rs");
    if let Err(error) = bindings.write_to_file(&out) {
        fail(&format!("cannot write {}: {error}", out.display()));
    }
}
