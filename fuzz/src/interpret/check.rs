//! What must hold between two steps, and at the end.

use super::*;

impl Stage {
    /// Somebody reads `binder_logs`: every process is in its state, and nothing changes.
    pub(super) fn read_logs(&self) {
        let state = self.binder.log_state();
        let lines: HashSet<&str> = state.lines().collect();
        for pid in self.binder.pids() {
            assert!(lines.contains(&*format!("proc {pid}")), "{pid} is not in\n{state}");
            let own = self.binder.log_process(pid).expect("it has a file open");
            assert!(
                own.lines()
                    .skip(1)
                    .all(|line| line.starts_with("binder proc") || lines.contains(line)),
                "{own}"
            );
        }
        let (busy, stats) = (self.binder.log_transactions(), self.binder.log_stats());
        assert!(
            busy.len() <= state.len() + 16 && stats.starts_with("binder stats:\n"),
            "{busy}{stats}"
        );
        for failed in [false, true] {
            let lines = self.binder.log_of_transactions(failed).lines().count();
            assert!(lines <= 32, "{lines} transactions are logged");
        }
    }

    /// All that must hold between two steps.
    pub(super) fn check(&self) {
        for context in &self.contexts {
            if let Err(violation) = context.check_invariants() {
                panic!("{violation}");
            }
        }
        let (mut used, mut lru) = (0, 0);
        for role in &self.roles {
            assert_eq!(role.mm.lost(), 0, "{}: a page that should be there is not", role.pid);
            assert_eq!(role.mm.users(), 0, "{}: a use of the mm was not put", role.pid);
            let pages = role.alloc.pages();
            let installed = pages.active + pages.lru;
            let resident = role.mm.resident();
            assert!(
                resident == installed || (self.zap_fails && resident > installed),
                "{}: {resident} pages are resident, {installed} installed",
                role.pid
            );
            used += resident;
            lru += pages.lru;
        }
        assert_eq!(self.memory.used(), used, "pages in use, by the budget and by the clients");
        assert_eq!(self.memory.count(), lru, "pages on the LRU, by the list and by their owners");
    }

    /// Whoever has asked to be told of a death, and lost nothing on the way, is told.
    pub(super) fn hear_of_deaths(&mut self) {
        for role in 0..self.roles.len() {
            let missing = |stage: &Stage| {
                let watches = &stage.roles[role].death_watches;
                watches.iter().find(|watch| !stage.roles[watch.1].open).copied()
            };
            let r = &self.roles[role];
            if !r.open || r.is_lossy || !r.dropped.is_empty() || missing(self).is_none() {
                continue;
            }
            for _ in 0..64 {
                let courtesies = self.courtesies(role, READER);
                let trouble = Trouble::NoTrouble;
                self.write_read(role, READER, &courtesies, &Read::DoesNotWait, &trouble);
                self.attend();
                if self.roles[role].threads[READER].last == Err(Errno::EAGAIN) {
                    break;
                }
            }
            let missed = missing(self);
            assert!(missed.is_none(), "{}: was not told of the death {missed:?}", role);
        }
    }

    /// Everybody leaves, and nothing must be left.
    pub(super) fn end(mut self) {
        trace(|| "everybody leaves".to_owned());
        self.hear_of_deaths();
        for role in 0..self.roles.len() {
            if self.roles[role].open {
                self.roles[role].open = false;
                self.roles[role].process.release();
                self.attend();
            }
        }
        self.timers.fire_all();
        self.attend();
        for role in &self.roles {
            let blocked = role.threads.iter().filter(|thread| thread.running.is_some()).count();
            assert_eq!(blocked, 0, "{}: threads are still blocked after the release", role.pid);
        }
        assert_eq!(self.binder.stats(), Stats::default(), "what the driver still holds");
        for role in self.roles.drain(..) {
            let process = Arc::downgrade(&role.process);
            let alloc = role.alloc.clone();
            drop(role);
            assert!(process.upgrade().is_none(), "somebody still holds a released process");
            assert_eq!(alloc.allocated_count(), 0, "buffers are left");
        }
        assert_eq!(self.memory.used(), 0, "pages are left");
        assert_eq!(self.memory.count(), 0, "pages are left on the LRU");
        assert_eq!(self.timers.waiting(), 0, "timers are left");
        assert_eq!(Arc::strong_count(&self.files), 1, "files are left");
    }
}
