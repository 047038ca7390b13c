//! Which program a process executes. An execve gives the process another mm and keeps its pid, so
//! the daemon compares the programs to tell one mm from the other.

use std::fs;

/// Where the kernel has put a program's text, stack and heap, as `/proc/PID/stat` says: random for
/// each execve, and constant while that mm lives. `None` where the daemon may not see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image(Option<[u64; 4]>);

impl Image {
    /// The program that a thread group executes now.
    pub(super) fn of(pid: i32) -> Image {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        Image::parse(&stat)
    }

    fn parse(stat: &str) -> Image {
        // The second field, the program's name, may have anything in it.
        let Some((_, rest)) = stat.rsplit_once(") ") else { return Image(None) };
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse().ok());
        let (startcode, endcode, startstack, start_brk) =
            (field(26), field(27), field(28), field(47));
        // Without ptrace access the stack begins at 0.
        let visible = startstack.filter(|start| *start != 0);
        let all = || Some([startcode?, endcode?, visible?, start_brk?]);
        Image(all())
    }

    /// Whether these are certainly two different programs.
    pub(super) fn differs_from(self, other: Image) -> bool {
        matches!((self.0, other.0), (Some(one), Some(another)) if one != another)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};

    #[test]
    fn a_process_executes_the_same_program_until_it_executes_another() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "echo shell; read line; exec cat"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let pid = child.id() as i32;
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        // A process that has written a line executes its program: its execve is over.
        let mut says = |line: &str| {
            let mut said = String::new();
            output.read_line(&mut said).expect("a line");
            assert_eq!(said, line);
        };
        says("shell\n");
        let before = Image::of(pid);
        assert!(before.0.is_some() && !before.differs_from(Image::of(pid)));
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(b"go on\ncat\n").expect("the shell reads");
        says("cat\n");
        assert!(before.differs_from(Image::of(pid)));
        drop(stdin);
        child.wait().expect("a child of ours");
    }

    #[test]
    fn what_cannot_be_seen_does_not_differ() {
        let line = |stack: u64| {
            let numbers: Vec<String> = (4..=52).map(|n: u64| n.to_string()).collect();
            let mut numbers = numbers;
            numbers[24] = stack.to_string();
            format!("7 (a ) b) S {}\n", numbers.join(" "))
        };
        assert_eq!(Image::parse(&line(28)), Image(Some([26, 27, 28, 47])));
        assert_eq!(Image::parse(&line(0)), Image(None));
        assert_eq!(Image::parse("7 (cat) S 1 2"), Image(None));
        assert_eq!(Image::parse(""), Image(None));
        assert!(Image::parse(&line(28)).differs_from(Image::parse(&line(29))));
        assert!(!Image::parse(&line(28)).differs_from(Image::parse(&line(0))));
    }
}
