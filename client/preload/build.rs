//! Has the library linked so that it needs the C library and nothing else: then it can be loaded
//! into programs of any C library, glibc's and musl's.
//!
//! Rust's standard library is linked with libgcc_s, which unwinds the stack of a panic, and glibc's
//! C library with its dynamic linker, for the sake of one function that every dynamic linker has.
//! Here the linker finds other files of these names first; `src/abort.rs` has what libgcc_s would
//! have given: panics end the program.

use std::path::PathBuf;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(without_libgcc_s)");
    let target = |part: &str| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    let known = ["x86_64", "x86", "aarch64"].contains(&&*target("ARCH"));
    if !known || target("OS") != "linux" || target("ENV") != "gnu" {
        return;
    }
    let scripts = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let write = |name, script| fs::write(scripts.join(name), script).expect("a file in OUT_DIR");
    write("libgcc_s.so", "INPUT(-lgcc)\n");
    write("libc.so", "INPUT(libc.so.6 libc_nonshared.a)\n");
    println!("cargo::rustc-link-search=native={}", scripts.display());
    println!("cargo::rustc-cfg=without_libgcc_s");
}
