//! fakebinder: what a person at the machine asks of the daemon and does around it.

mod container_config;
mod exec;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What a person at the machine asks of fakebinderd and does around it.
#[derive(Parser, Debug)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    ContainerConfig(container_config::ContainerConfig),
    Exec(exec::Exec),
}

fn main() -> ExitCode {
    match Args::parse().command {
        Command::ContainerConfig(wanted) => container_config::run(&wanted),
        Command::Exec(exec) => exec::run(exec),
    }
}
