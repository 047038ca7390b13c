//! `fakebinder container-config`: what gives a container the devices of a mount.
//!
//! Stock configurations bind single device files. A file of the FUSE door that is bound by itself
//! cannot be mapped by the kernel, so the directory is bound, and links lead there.

use clap::{Args, ValueEnum};
use std::fmt::Write;
use std::io::{self, Write as _};
use std::process::ExitCode;

/// Prints what gives a container the devices of one of fakebinderd's mounts: for LXC lines of its
/// configuration, with links from /dev; for docker and podman arguments of `run`, which can make no
/// links.
///
/// Give each container a mount of its own (`fakebinderd --mount A --mount B`): those who share one
/// can call each other. Start the daemon first, and start the container anew when that was.
#[derive(Args, Debug)]
pub struct ContainerConfig {
    /// What runs the container
    #[arg(value_enum)]
    engine: Engine,

    /// Where fakebinderd has mounted, outside of the container
    #[arg(long, value_name = "DIR", default_value = "/dev/fakebinderfs", value_parser = path)]
    mount: String,

    /// Where its devices are to be in the container
    #[arg(long, value_name = "DIR", default_value = "/dev/binderfs", value_parser = path)]
    at: String,

    /// A device to which a link is made in the container's /dev; may be given more than once. For
    /// LXC only; without it: binder, hwbinder and vndbinder
    #[arg(long = "name", value_name = "NAME", value_parser = device_name)]
    names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Engine {
    Lxc,
    Docker,
    Podman,
}

/// What Android's programs open.
const ANDROID: [&str; 3] = ["binder", "hwbinder", "vndbinder"];

/// A path that means the same in every configuration, since none of its characters is special in
/// any.
fn path(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    if !text.starts_with('/') {
        return Err("a path from / on is needed, as in /run/fakebinder/one/fs".into());
    }
    if let Some(odd) = text.chars().find(|c| !is_plain(*c)) {
        return Err(format!(
            "{odd:?} has a meaning of its own in some configurations: mount at a path of letters, digits and / . _ - + @"
        ));
    }
    let mut parts = text.split('/').filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() || parts.any(|part| matches!(part, "." | "..")) {
        return Err("name a directory below /, without . and ..".into());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The names that fakebinderd takes.
fn device_name(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match !name.is_empty() && !name.starts_with(['.', '-']) && name.chars().all(is_plain) {
        true => Ok(name.to_owned()),
        false => Err("a device name has letters, digits, and _ - . after the first".into()),
    }
}

/// Prints it. Exit status 2, and one line, if it does not make sense.
pub fn run(wanted: &ContainerConfig) -> ExitCode {
    match text(wanted) {
        Ok(text) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("fakebinder: writing: {error}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("fakebinder: {error}");
            ExitCode::from(2)
        }
    }
}

fn text(wanted: &ContainerConfig) -> Result<String, String> {
    match wanted.engine {
        Engine::Lxc => Ok(lxc(wanted)),
        Engine::Docker | Engine::Podman => run_arguments(wanted),
    }
}

/// Arguments of `docker run`, which podman takes too. Of the two ways to bind this is the one that
/// fails where there is no such directory, instead of making it.
fn run_arguments(wanted: &ContainerConfig) -> Result<String, String> {
    let ContainerConfig { mount, at, names, .. } = wanted;
    match names.first() {
        None => Ok(format!("--mount type=bind,source={mount},target={at}\n")),
        Some(name) => Err(format!(
            "--name {name}: docker and podman make no links; have the container's first program make it: \
             ln -s {} /dev/{name}",
            target(at, name)
        )),
    }
}

/// Where a link in /dev leads.
fn target(at: &str, name: &str) -> String {
    format!("{}/{name}", at.strip_prefix("/dev/").unwrap_or(at))
}

fn lxc(wanted: &ContainerConfig) -> String {
    let ContainerConfig { mount, at, names, .. } = wanted;
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    if names.is_empty() {
        names = ANDROID.to_vec();
    }
    let mut out = String::from(
        "# fakebinder's devices. These lines stand in place of those that bind device files one by one; take out:\n",
    );
    for name in &names {
        let _ = writeln!(
            out,
            "#   lxc.mount.entry = /dev/{name} dev/{name} none bind,create=file,optional 0 0"
        );
    }
    let _ = writeln!(
        out,
        "# (Waydroid's are in /var/lib/waydroid/lxc/waydroid/config_nodes, and are written anew by `waydroid init`.)"
    );
    let inside = at.trim_start_matches('/');
    let _ = writeln!(out, "lxc.mount.entry = {mount} {inside} none bind,create=dir 0 0");
    // LXC has a shell execute it, outside the container's root, and adds words of its own.
    let links = names
        .iter()
        .map(|name| format!("ln -sfn {} \"$LXC_ROOTFS_MOUNT/dev/{name}\"", target(at, name)));
    let links: Vec<String> = links.collect();
    let _ = writeln!(out, "lxc.hook.mount = sh -c '{}'", links.join(" && "));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Line {
        #[command(flatten)]
        wanted: ContainerConfig,
    }

    fn said(line: &str) -> Result<String, String> {
        let words = ["fakebinder"].into_iter().chain(line.split_whitespace());
        text(&Line::try_parse_from(words).map_err(|error| error.to_string())?.wanted)
    }

    #[test]
    fn lxc_binds_the_directory_and_makes_links() {
        let said =
            said("lxc --mount /run/fakebinder/one/fs --name binder --name hwbinder").unwrap();
        let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "lxc.mount.entry = /run/fakebinder/one/fs dev/binderfs none bind,create=dir 0 0",
                "lxc.hook.mount = sh -c 'ln -sfn binderfs/binder \"$LXC_ROOTFS_MOUNT/dev/binder\" && \
                 ln -sfn binderfs/hwbinder \"$LXC_ROOTFS_MOUNT/dev/hwbinder\"'",
            ]
        );
        assert!(
            said.contains("#   lxc.mount.entry = /dev/hwbinder dev/hwbinder none bind,"),
            "{said}"
        );
    }

    #[test]
    fn without_names_they_are_those_of_android() {
        let said = said("lxc --at /binder/").unwrap();
        for name in ANDROID {
            let link = format!("ln -sfn /binder/{name} \"$LXC_ROOTFS_MOUNT/dev/{name}\"");
            assert!(said.contains(&link), "{said}");
        }
        assert!(said.contains("= /dev/fakebinderfs binder none bind"), "{said}");
    }

    #[test]
    fn docker_and_podman_take_the_same_arguments() {
        for engine in ["docker", "podman"] {
            assert_eq!(
                said(&format!("{engine} --mount /run/fakebinder/one/fs/")).unwrap(),
                "--mount type=bind,source=/run/fakebinder/one/fs,target=/dev/binderfs\n"
            );
            let error = said(&format!("{engine} --name binder")).unwrap_err();
            assert!(error.contains("ln -s binderfs/binder /dev/binder"), "{error}");
        }
    }

    #[test]
    fn what_has_another_meaning_is_refused_by_its_name() {
        for (line, why) in [
            ("lxc --mount fs", "'fs'"),
            ("lxc --mount /a:b", "':'"),
            ("docker --mount /a,readonly", "','"),
            ("lxc --mount /a'b", "'\\''"),
            ("lxc --mount /", "below /"),
            ("lxc --mount /a/../b", "without . and .."),
            ("lxc --at dev/binderfs", "'dev/binderfs'"),
            ("lxc --name a/b", "'a/b'"),
            ("lxc --name .", "'.'"),
            ("lxd", "'lxd'"),
        ] {
            let error = said(line).unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
        for odd in ["/a b", "/a\nlxc.init.cmd = x", "/ü"] {
            assert!(Line::try_parse_from(["x", "lxc", "--mount", odd]).is_err(), "{odd:?}");
        }
    }
}
