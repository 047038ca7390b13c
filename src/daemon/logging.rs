//! Where the daemon's log goes, and what is in it.

use fakebinder::log_writer;
use log::LevelFilter;
use std::io::IsTerminal;

/// Logs on a thread of its own, so that code that logs never waits for whoever reads the log.
pub fn log_to_standard_error(filters: &str) -> std::io::Result<log_writer::Drain> {
    let (writer, drain) = log_writer::start(std::io::stderr())?;
    let mut logger = env_logger::Builder::new();
    let style = std::env::var("RUST_LOG_STYLE").unwrap_or_default();
    logger.parse_filters(filters).parse_write_style(&style);
    if std::io::stderr().is_terminal() && style.is_empty() {
        logger.write_style(env_logger::WriteStyle::Always);
    }
    logger.format_target(false).target(env_logger::Target::Pipe(Box::new(writer))).init();
    Ok(drain)
}

/// The filters of env_logger for this RUST_LOG and so many `-v`: a line is logged when either asks
/// for it.
pub fn log_filters(rust_log: Option<&str>, verbose: u8) -> String {
    let rust_log = rust_log.filter(|filters| !filters.trim().is_empty());
    let least = match (verbose, rust_log) {
        (0, None) => return "info".into(),
        (0, Some(filters)) => return filters.into(),
        (1, _) => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let (directives, pattern) = match rust_log.unwrap_or_default().split_once('/') {
        Some((directives, pattern)) => (directives, format!("/{pattern}")),
        None => (rust_log.unwrap_or_default(), String::new()),
    };
    let mut everything = least;
    let mut filters = Vec::new();
    for directive in directives.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        match directive.split_once('=') {
            Some((module, level)) => match level.trim().parse::<LevelFilter>() {
                Ok(level) => filters.push(format!("{module}={}", level.max(least))),
                // Every level, or a mistake that env_logger tells of.
                Err(_) => filters.push(directive.to_owned()),
            },
            None => match directive.parse::<LevelFilter>() {
                Ok(level) => everything = everything.max(level),
                Err(_) => filters.push(directive.to_owned()),
            },
        }
    }
    filters.push(everything.to_string());
    filters.join(",") + &pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_logged_when_rust_log_or_the_flag_asks_for_it() {
        assert_eq!(log_filters(None, 0), "info");
        assert_eq!(log_filters(Some(" "), 0), "info");
        assert_eq!(log_filters(Some("warn,x=trace"), 0), "warn,x=trace");
        assert_eq!(log_filters(None, 1), "DEBUG");
        assert_eq!(log_filters(None, 3), "TRACE");
        assert_eq!(log_filters(Some("warn"), 1), "DEBUG");
        assert_eq!(log_filters(Some("trace"), 1), "TRACE");
        assert_eq!(log_filters(Some("a=warn,b=trace,c,d="), 1), "a=DEBUG,b=TRACE,c,d=,DEBUG");
        assert_eq!(log_filters(Some("off, a=error/late"), 2), "a=TRACE,TRACE/late");
    }
}
