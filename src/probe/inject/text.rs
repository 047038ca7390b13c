//! Specifications of faults as text: `--inject` and `fakebinder inject`.

use super::{Injector, Rule, Verb};
use crate::Errno;
use std::str::FromStr;
use std::time::Duration;

const ERRNOS: [(&str, Errno); 18] = [
    ("EAGAIN", Errno::EAGAIN),
    ("EBADF", Errno::EBADF),
    ("EBUSY", Errno::EBUSY),
    ("EEXIST", Errno::EEXIST),
    ("EFAULT", Errno::EFAULT),
    ("EINTR", Errno::EINTR),
    ("EINVAL", Errno::EINVAL),
    ("EIO", Errno::EIO),
    ("EMFILE", Errno::EMFILE),
    ("ENFILE", Errno::ENFILE),
    ("ENOBUFS", Errno::ENOBUFS),
    ("ENODEV", Errno::ENODEV),
    ("ENOENT", Errno::ENOENT),
    ("ENOMEM", Errno::ENOMEM),
    ("ENOSPC", Errno::ENOSPC),
    ("ENXIO", Errno::ENXIO),
    ("EPERM", Errno::EPERM),
    ("ESRCH", Errno::ESRCH),
];

fn parse_errno(text: &str) -> Result<Errno, String> {
    let named = ERRNOS.iter().find(|(name, _)| *name == text).map(|&(_, errno)| errno);
    let numbered =
        || text.parse().ok().map(Errno::from_raw).filter(|&errno| errno != Errno::UnknownErrno);
    named
        .or_else(numbered)
        .ok_or_else(|| format!("no error '{text}': a name such as ENOMEM, or a number"))
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("no delay '{text}': {error} (as in 50us, 1ms or 2s)"))
}

fn parse_rule(text: &str) -> Result<Rule, String> {
    let mut parts = text.split(':');
    let name = parts.next().unwrap_or_default();
    let Some(&(_, verb)) = Verb::ALL.iter().find(|(known, _)| *known == name) else {
        let known = Verb::ALL.map(|(name, _)| name).join(", ");
        return Err(format!("nothing called '{name}' to inject into: {known}"));
    };
    let mut rule = Rule::new(verb);
    for part in parts {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("'{part}' is not KEY=VALUE"))?;
        rule = match key {
            "nth" => rule.nth(
                value.parse().ok().filter(|&n| n > 0).ok_or(format!("no call number '{value}'"))?,
            ),
            "share" => {
                let share: Option<f64> = value.parse().ok();
                rule.share(
                    share
                        .filter(|s| (0.0..=1.0).contains(s))
                        .ok_or(format!("no share '{value}': 0 to 1"))?,
                )
            }
            "pid" => rule
                .pid(value.parse().ok().filter(|&n| n > 0).ok_or(format!("no process '{value}'"))?),
            "errno" => rule.fail(parse_errno(value)?),
            "delay" => rule.delay(parse_delay(value)?),
            _ => return Err(format!("a rule has no '{key}': nth, share, pid, errno, delay")),
        };
    }
    if rule.errno.is_none() && rule.delay.is_zero() {
        rule = rule.fail(verb.usual_errno());
    }
    Ok(rule.told_as(text))
}

impl FromStr for Injector {
    type Err = String;

    fn from_str(specification: &str) -> Result<Self, String> {
        let (mut seed, mut rules) = (0, Vec::new());
        for item in specification.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.strip_prefix("seed=") {
                Some(text) => seed = text.parse().map_err(|_| format!("no seed '{text}'"))?,
                None => rules.push(parse_rule(item)?),
            }
        }
        Ok(rules.into_iter().fold(Injector::seeded(seed), Injector::with))
    }
}
