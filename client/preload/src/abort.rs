//! What Rust's standard library wants of libgcc_s, for a panic: here a panic ends the program. No
//! other library sees these functions.

/// An instruction that does not exist: SIGILL.
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
macro_rules! no_instruction {
    () => {
        "ud2"
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! no_instruction {
    () => {
        "udf #0"
    };
}

macro_rules! ends {
    ($name:literal) => {
        std::arch::global_asm!(
            concat!(".globl ", $name),
            concat!(".hidden ", $name),
            concat!($name, ":"),
            no_instruction!(),
        );
    };
}

ends!("_Unwind_Backtrace");
ends!("_Unwind_DeleteException");
ends!("_Unwind_FindEnclosingFunction");
ends!("_Unwind_ForcedUnwind");
ends!("_Unwind_GetCFA");
ends!("_Unwind_GetDataRelBase");
ends!("_Unwind_GetIP");
ends!("_Unwind_GetIPInfo");
ends!("_Unwind_GetLanguageSpecificData");
ends!("_Unwind_GetRegionStart");
ends!("_Unwind_GetTextRelBase");
ends!("_Unwind_RaiseException");
ends!("_Unwind_Resume");
ends!("_Unwind_SetGR");
ends!("_Unwind_SetIP");
