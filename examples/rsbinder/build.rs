//! Makes Rust of the AIDL files: the traits, and the code that calls and is called.

fn main() {
    let generated = rsbinder_aidl::Builder::new()
        .source("aidl/board/IBoard.aidl")
        .include_dir("aidl")
        .output("board.rs")
        .generate();
    if let Err(error) = generated {
        eprintln!("{:?}", miette::Report::new(error));
        std::process::exit(1);
    }
}
