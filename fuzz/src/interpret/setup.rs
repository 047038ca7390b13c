//! How a program begins: a driver, its clients, and what they know of each other.

use super::*;

impl Stage {
    pub(super) fn new(setting: &Setting) -> Stage {
        let barrier = Arc::new(Barrier::default());
        let mut inject = Injector::default();
        if setting.install == Install::Shared {
            // The other rule holds the mm's lock here.
            let passing = barrier.clone();
            inject = inject.with(Rule::new(Verb::AllocPage).hook(move |_| passing.pass()));
        }
        let mut zap_fails = false;
        for fault in setting.faults.iter() {
            let (verb, errno) = match fault.verb {
                MmVerb::AllocPage => (Verb::AllocPage, Errno::ENOMEM),
                MmVerb::InsertPage => (Verb::InsertPage, Errno::ENOMEM),
                MmVerb::VmaLookup => (Verb::VmaLookup, Errno::ESRCH),
                MmVerb::MmGet => (Verb::MmGet, Errno::ESRCH),
                MmVerb::Zap => (Verb::Zap, Errno::EIO),
            };
            zap_fails |= verb == Verb::Zap;
            inject = inject.with(Rule::new(verb).nth(1 + u64::from(fault.nth % 16)).fail(errno));
        }
        let pages = u64::from(setting.budget);
        let memory = Memory::new(MemoryConfig {
            page_budget: (pages < 192).then_some((1 + pages % 12) * PAGE_SIZE as u64),
            page_install: match setting.install {
                Install::Shared => PageInstall::Shared,
                Install::Exclusive => PageInstall::Exclusive,
            },
        });
        let probes = Probes { inject, ..Probes::default() };
        let timers = Arc::new(ManualTimers::default());
        let binder = Binder::new(timers.clone());
        let contexts = [binder.context("binder"), binder.context("hwbinder")];
        let mut stage = Stage {
            binder,
            contexts,
            memory,
            probes,
            timers,
            barrier,
            files: Arc::new(()),
            roles: Vec::with_capacity(4),
            ledger: Ledger::default(),
            zap_fails,
        };
        for index in 0..3 {
            stage.open(0, FIRST_PID + index, setting.pages);
        }
        match setting.manager {
            Manager::Plain => stage.become_manager(None),
            Manager::TakesFiles => stage.become_manager(Some(NodeFlags(0x40))),
            Manager::WantsSecurityContext => stage.become_manager(Some(NodeFlags(0x80))),
            Manager::Absent => {}
        }
        stage.write_read(0, 0, &[Command::EnterLooper], &Read::Nothing, &Trouble::NoTrouble);
        if setting.acquaintance == Acquaintance::Acquainted && setting.manager != Manager::Absent {
            stage.acquaint();
        }
        stage.write_read(0, 0, &[], &Read::Waits, &Trouble::NoTrouble);
        stage.attend();
        stage
    }

    /// Processes 1 and 2 tell the manager of a node each, the manager tells 1 of 2's.
    pub(super) fn acquaint(&mut self) {
        let node = Object::Node { index: 0, strong: Strength::Strong, flags: NodeFlags(0x40) };
        let handle = Object::Handle { handle: Pick(2), strong: Strength::Strong };
        for (by, to, object) in [(1, 0, node.clone()), (2, 0, node), (0, 1, handle)] {
            let message = Message {
                flags: Flags(0xc0),
                code: 0,
                size: Size::Bytes { count: 8 },
                objects: List(vec![object]),
                twist: Twist::Honest,
            };
            let send = [Command::Transaction { to: Pick(to), message }];
            self.write_read(by, 2, &send, &Read::DoesNotWait, &Trouble::NoTrouble);
            self.attend();
            let receiver = usize::from(to);
            self.write_read(receiver, 1, &[], &Read::DoesNotWait, &Trouble::NoTrouble);
            self.attend();
            let thanks = self.courtesies(receiver, 1);
            self.write_read(receiver, 1, &thanks, &Read::Nothing, &Trouble::NoTrouble);
            self.attend();
        }
    }

    pub(super) fn open(&mut self, context: usize, pid: i32, pages: u8) {
        if self.roles.len() >= MAX_OPENS {
            return;
        }
        let index = self.roles.len();
        let client = Arc::new(SimClient::default());
        client.set_security_context(security_context(pid));
        let barrier = self.barrier.clone();
        client.at_reach(move || barrier.pass());
        for number in 0..2 {
            let number = (index as u32) << 8 | number;
            client.add_file(Arc::new(CountedFile { number, _alive: self.files.clone() }));
        }
        let mm = HeapMm::new();
        let (user, probes) = (User::unlimited(), self.probes.clone());
        let alloc = Alloc::of_user(mm.clone(), &self.memory, user, probes);
        mm.mmap(MAPPING, (1 + usize::from(pages % 8)) * PAGE_SIZE);
        let arena = Arc::new(Arena::default());
        arena.push(&[0; SCRATCH]);
        let process = self.contexts[context].open(pid, pid * 10, client.clone(), alloc.clone());
        let view = View::new(arena.clone(), self.barrier.clone(), View::ALWAYS);
        self.roles.push(Role {
            index,
            pid,
            process,
            client,
            alloc,
            mm,
            arena,
            view,
            threads: Default::default(),
            open: true,
            handles: vec![0],
            dropped: Vec::new(),
            buffers: Vec::new(),
            freed: Vec::new(),
            notices: Vec::new(),
            death_links: Vec::new(),
            death_watches: Vec::new(),
            deaths: Vec::new(),
            freeze_links: Vec::new(),
            freezes: Vec::new(),
            next_cookie: 1,
            kept: Vec::new(),
            is_lossy: false,
            hasty: false,
        });
    }

    pub(super) fn become_manager(&mut self, flags: Option<NodeFlags>) {
        let (cmd, arg) = match flags {
            None => (BINDER_SET_CONTEXT_MGR, vec![0; 4]),
            Some(flags) => (BINDER_SET_CONTEXT_MGR_EXT, self.node_argument(0, flags)),
        };
        self.call(0, 0, cmd, arg);
    }

    pub(super) fn node_argument(&self, role: usize, flags: NodeFlags) -> Vec<u8> {
        let (binder, cookie) = self.roles[role].node(0);
        let flat = FlatObject { flags: node_flags(flags), binder, cookie };
        let mut arg = Vec::new();
        BcObject::Binder { strong: true, flat }.encode(&mut arg);
        arg
    }
}
