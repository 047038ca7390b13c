//! The clients of a run, and what befalls them: they are killed and started anew, stopped and
//! continued, frozen and thawed.

use crate::chance::Chance;
use crate::client::{FAILED, LEFT, complain};
use crate::tally::{Event, Tally};
use crate::{Args, Role};
use fakebinder_client::{Device, Errno};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A killed client is gone in this time, whatever it waited for.
const DIES_IN: Duration = Duration::from_secs(20);
/// A client that does not read is killed after as long, at most: others may wait for its reply.
const IDLE_LIVES: Duration = Duration::from_secs(4);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Runs,
    /// By SIGSTOP, until then.
    Stopped(Instant),
    /// By BINDER_FREEZE, until then.
    Frozen(Instant),
}

struct Member {
    role: Role,
    child: Child,
    state: State,
    born: Instant,
}

impl Member {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        // A child that has ended is not reaped yet, so the number is nobody else's.
        let _ = kill(Pid::from_raw(self.pid() as i32), signal);
    }
}

/// All clients of a run. Killed when dropped.
pub struct Crowd<'r> {
    args: &'r Args,
    device: PathBuf,
    tally: &'static Tally,
    tally_path: PathBuf,
    /// Their standard error.
    complaints: File,
    members: Vec<Member>,
    dying: Vec<(Child, Instant)>,
    started: u32,
    chance: Chance,
}

impl<'r> Crowd<'r> {
    pub fn new(
        args: &'r Args,
        device: &Path,
        tally: &'static Tally,
        tally_path: &Path,
        complaints: File,
    ) -> Crowd<'r> {
        Crowd {
            args,
            device: device.to_owned(),
            tally,
            tally_path: tally_path.to_owned(),
            complaints,
            members: Vec::new(),
            dying: Vec::new(),
            started: 0,
            chance: Chance::new(args.seed),
        }
    }

    /// Starts everybody.
    pub fn gather(&mut self, hoarders: bool) -> io::Result<()> {
        let workers = std::iter::repeat_n(Role::Worker, self.args.clients as usize);
        let idle = [Role::Idle; 2];
        let hoarders = if hoarders { &[Role::Hoarder; 2][..] } else { &[] };
        let others = workers.chain(idle).chain(hoarders.iter().copied());
        for role in std::iter::once(Role::Manager).chain(others) {
            let member = self.start(role)?;
            self.members.push(member);
        }
        Ok(())
    }

    fn start(&mut self, role: Role) -> io::Result<Member> {
        self.started += 1;
        self.tally.happened(Event::Births);
        let mut command = Command::new("/proc/self/exe");
        command.args(["--role", role.name(), "--device"]).arg(&self.device);
        command.arg("--tally").arg(&self.tally_path);
        command.args(["--number", &self.started.to_string()]);
        command.args(["--seed", &self.args.seed.to_string()]);
        if self.args.plant_wrong_answers {
            command.arg("--plant-wrong-answers");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(self.complaints.try_clone()?);
        // Ctrl-C at the terminal is for the one who started them.
        command.process_group(0);
        let (state, born) = (State::Runs, Instant::now());
        Ok(Member { role, child: command.spawn()?, state, born })
    }

    /// What befalls the crowd in one moment, of which there are some fifty in a second.
    pub fn moment(&mut self, watch: &Device) -> io::Result<()> {
        let now = Instant::now();
        for index in 0..self.members.len() {
            self.tend(watch, index, now)?;
        }
        self.dying.retain_mut(|(child, since)| match child.try_wait() {
            Ok(None) if now - *since > DIES_IN => {
                complain(self.tally, &format!("client {} is killed, and does not end", child.id()));
                false
            }
            Ok(None) => true,
            _ => false,
        });
        let victim = self.chance.below(self.members.len() as u64) as usize;
        let (role, state) = (self.members[victim].role, self.members[victim].state);
        let honest = role == Role::Worker && state == State::Runs;
        match self.chance.below(200) {
            // About one in a second.
            0..4 if role != Role::Manager || self.chance.one_in(4) => self.replace(victim)?,
            4..8 if honest => {
                let time = Duration::from_millis(30 + self.chance.below(800));
                self.members[victim].signal(Signal::SIGSTOP);
                self.members[victim].state = State::Stopped(now + time);
                self.tally.happened(Event::Stops);
            }
            8..20 if honest => self.freeze(watch, victim, now),
            20..23 => {
                if let Ok(pages) = watch.daemon_reclaim() {
                    self.tally.happened(Event::Reclaims);
                    self.tally.add(Event::PagesReclaimed, pages);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Ends what was to last for a time, and starts anew who has ended.
    fn tend(&mut self, watch: &Device, index: usize, now: Instant) -> io::Result<()> {
        let member = &mut self.members[index];
        if let Some(status) = member.child.try_wait()? {
            let (role, pid) = (member.role, member.pid());
            self.judge(role, pid, status);
            let fresh = self.start(role)?;
            self.members[index] = fresh;
            return Ok(());
        }
        match member.state {
            State::Stopped(until) if until <= now => {
                member.signal(Signal::SIGCONT);
                member.state = State::Runs;
            }
            State::Frozen(until) if until <= now => {
                // A thaw that fails (by a fault) is asked for again.
                let thawed = watch.freeze(member.pid(), false, 0);
                if !matches!(thawed, Err(error) if error.errno() != Errno::EINVAL) {
                    member.state = State::Runs;
                }
            }
            _ => {}
        }
        if self.members[index].role == Role::Idle && now - self.members[index].born > IDLE_LIVES {
            self.replace(index)?;
        }
        Ok(())
    }

    /// Whether a client may end so by itself.
    fn judge(&self, role: Role, pid: u32, status: ExitStatus) {
        let may = match status.code() {
            Some(0) => role == Role::Hoarder,
            // The former has been counted; the latter has said why.
            Some(LEFT | FAILED) => true,
            _ => false,
        };
        if !may {
            complain(self.tally, &format!("the {} {pid} ended by itself: {status}", role.name()));
        }
    }

    fn replace(&mut self, index: usize) -> io::Result<()> {
        let fresh = self.start(self.members[index].role)?;
        let mut old = std::mem::replace(&mut self.members[index], fresh);
        old.child.kill()?;
        self.tally.happened(Event::Kills);
        self.dying.push((old.child, Instant::now()));
        Ok(())
    }

    fn freeze(&mut self, watch: &Device, index: usize, now: Instant) {
        let time = Duration::from_millis(20 + self.chance.below(400));
        let patience = 20 + self.chance.below(60) as u32;
        let frozen = watch.freeze(self.members[index].pid(), true, patience);
        self.tally.happened(match frozen {
            Ok(()) => Event::Freezes,
            Err(_) => Event::FreezesRefused,
        });
        // One that was refused has frozen nobody, but a fault may be told after the deed.
        self.members[index].state = State::Frozen(now + time);
    }

    /// Kills everybody, and waits until they are gone.
    pub fn disperse(&mut self) {
        self.kill();
        let deadline = Instant::now() + DIES_IN;
        while !self.dying.is_empty() && Instant::now() < deadline {
            self.dying.retain_mut(|(child, _)| matches!(child.try_wait(), Ok(None)));
            std::thread::sleep(Duration::from_millis(5));
        }
        for (child, _) in self.dying.drain(..) {
            complain(self.tally, &format!("client {} is killed, and does not end", child.id()));
        }
    }

    fn kill(&mut self) {
        for mut member in std::mem::take(&mut self.members) {
            match member.child.try_wait() {
                Ok(Some(status)) => self.judge(member.role, member.pid(), status),
                _ => {
                    let _ = member.child.kill();
                    self.dying.push((member.child, Instant::now()));
                }
            }
        }
    }
}

impl Drop for Crowd<'_> {
    fn drop(&mut self) {
        self.disperse();
    }
}
