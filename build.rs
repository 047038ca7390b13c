//! Generates Rust bindings for `<linux/fuse.h>` and `<linux/android/binder.h>`.
//!
//! Both headers come from the kernel's user-space API package (Debian: linux-libc-dev) and
//! bindgen reads them through libclang (Debian: libclang-dev). What is newer than the oldest
//! headers that we build with is added by hand in `src/uapi.rs`.

use std::path::{Path, PathBuf};
use std::{env, process};

const HEADERS: [&str; 2] = ["linux/fuse.h", "linux/android/binder.h"];

/// Stops the build with one line that says what is missing and which package brings it.
fn fail(missing: &str, package: &str) -> ! {
    println!("cargo::error={missing}; install it (Debian, Ubuntu: apt-get install {package})");
    process::exit(1);
}

/// libclang is loaded at run time by bindgen, which panics when it finds none: look first.
fn have_libclang() -> bool {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let mut roots = vec![
        PathBuf::from("/usr/lib"),
        PathBuf::from("/usr/lib64"),
        PathBuf::from("/usr/local/lib"),
    ];
    for parent in ["/usr/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"] {
        roots.push(PathBuf::from(parent));
        if let Ok(entries) = std::fs::read_dir(parent) {
            roots.extend(entries.flatten().map(|e| e.path().join("lib")).filter(|p| p.is_dir()));
        }
    }
    let is_libclang = |name: &str| {
        name == "libclang.so" || name.starts_with("libclang.so.") || name.starts_with("libclang-")
    };
    roots
        .iter()
        .filter_map(|r| std::fs::read_dir(r).ok())
        .any(|entries| entries.flatten().any(|e| e.file_name().to_str().is_some_and(is_libclang)))
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    for header in HEADERS {
        if !Path::new("/usr/include").join(header).exists() {
            fail(&format!("the kernel header <{header}> is missing"), "linux-libc-dev");
        }
    }
    if !have_libclang() {
        fail(
            "libclang, which bindgen needs to read the kernel headers, is missing",
            "libclang-dev",
        );
    }

    let includes: String = HEADERS.iter().map(|h| format!("#include <{h}>\n")).collect();
    let bindings = bindgen::Builder::default()
        .header_contents("uapi.h", &includes)
        .allowlist_type("fuse_.*|cuse_.*|binder_.*|flat_binder_object")
        .allowlist_var("FUSE_.*|CUSE_.*|FATTR_.*|FOPEN_.*|BINDER_.*|FLAT_BINDER_.*|B[CR]_.*|TF_.*")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .layout_tests(true)
        .wrap_unsafe_ops(true)
        .generate_comments(false)
        .generate();
    let bindings = match bindings {
        Ok(bindings) => bindings,
        Err(error) => fail(
            &format!("bindgen could not read the kernel headers: {error}"),
            "linux-libc-dev libclang-dev",
        ),
    };
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("uapi.rs");
    if let Err(error) = bindings.write_to_file(&out) {
        println!("cargo::error=cannot write {}: {error}", out.display());
        process::exit(1);
    }
}
