//! A kernel for tests: a [`Schema`] of some twenty real events, written down from Linux 6.18 on x86-64.
//!
//! In: nothing. Out: [`Fixture`], always the same, so that expectations can be kept beside the cases. Offsets behind
//! pointers are made up; those in formats are the kernel's.

use std::sync::Arc;

use crate::schema::{
    Argument, Base, Event, Field, Hop, Origin, Path, PathError, PathStep, Place, Recipe, Resolved, Schema,
    Symbols, Type,
};

/// The kernel for tests.
#[derive(Debug)]
pub struct Fixture {
    /// Sorted by system and name.
    events: Vec<Arc<Event>>,
}

impl Default for Fixture {
    fn default() -> Self {
        let mut events: Vec<Arc<Event>> = events().into_iter().map(Arc::new).collect();
        events.sort_by(|a, b| (&a.system, &a.name).cmp(&(&b.system, &b.name)));
        Fixture { events }
    }
}

const U16: Type = Type::Int {
    bits: 16,
    signed: false,
};
const I16: Type = Type::Int {
    bits: 16,
    signed: true,
};

/// Columns of a field's line: name, type in C, type, where a classic and where a typed program finds it.
type Row = (&'static str, &'static str, Type, Option<Place>, Option<Recipe>);

fn at(offset: u16) -> Option<Place> {
    Some(Place::At(offset))
}

fn text_at(offset: u16) -> Option<Place> {
    Some(Place::DataLoc(offset))
}

fn walk(base: Base, offsets: &[u32]) -> Path {
    let hops = offsets.iter().map(|offset| Hop {
        offset: *offset,
        direct: true,
    });
    Path {
        base,
        hops: hops.collect(),
        bits: None,
        text_behind: false,
    }
}

/// Through an argument.
fn through(argument: u8, offsets: &[u32]) -> Option<Recipe> {
    Some(Recipe::Path(walk(Base::Argument(argument), offsets)))
}

fn event(system: &str, name: &str, rows: Vec<Row>, arguments: &[(&str, &str)]) -> Event {
    let field = |(name, declared, ty, place, recipe): Row| Field {
        name: name.to_owned(),
        declared: declared.to_owned(),
        ty,
        hex: declared.ends_with('*') || name == "call_site",
        place,
        recipe,
        symbols: Symbols::default(),
        enumerators: Symbols::default(),
    };
    let argument = |(name, declared): &(&str, &str)| Argument {
        name: (*name).to_owned(),
        declared: (*declared).to_owned(),
    };
    Event {
        system: system.to_owned(),
        name: name.to_owned(),
        origin: Origin::Tracepoint,
        fields: rows.into_iter().map(field).collect(),
        arguments: arguments.iter().map(argument).collect(),
        in_interrupt: false,
    }
}

fn with_symbols(mut event: Event, field: &str, symbols: &[(&str, i64)]) -> Event {
    let symbols: Symbols = symbols
        .iter()
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect();
    for known in event.fields.iter_mut().filter(|known| known.name == field) {
        known.symbols = Arc::clone(&symbols);
    }
    event
}

fn syscall(name: &str, origin: Origin, rows: Vec<(&'static str, &'static str, Type)>) -> Event {
    let rows = rows.into_iter().zip(0..).map(|((name, declared, ty), index)| {
        let recipe = match (origin, index) {
            (_, 0) => Recipe::SyscallNumber,
            (Origin::SyscallExit(_), _) => Recipe::SyscallReturn,
            (_, index) => Recipe::SyscallArgument(index - 1),
        };
        (name, declared, ty, None, Some(recipe))
    });
    Event {
        origin,
        ..event("syscalls", name, rows.collect(), &[])
    }
}

fn events() -> Vec<Event> {
    let mut events = scheduler();
    events.extend(devices());
    events.extend(system_calls());
    events
}

fn scheduler() -> Vec<Event> {
    let switch = event(
        "sched",
        "sched_switch",
        vec![
            ("prev_comm", "char[16]", Type::COMM, at(8), through(1, &[3040])),
            ("prev_pid", "pid_t", Type::I32, at(24), through(1, &[2464])),
            ("prev_prio", "int", Type::I32, at(28), through(1, &[148])),
            (
                "prev_state",
                "long",
                Type::I64,
                at(32),
                Some(Recipe::SwitchState {
                    preempt: walk(Base::Argument(0), &[]),
                    prev_state: walk(Base::Argument(3), &[]),
                    exit_state: walk(Base::Argument(1), &[2380]),
                }),
            ),
            ("next_comm", "char[16]", Type::COMM, at(40), through(2, &[3040])),
            ("next_pid", "pid_t", Type::I32, at(56), through(2, &[2464])),
            ("next_prio", "int", Type::I32, at(60), through(2, &[148])),
        ],
        &[
            ("preempt", "bool"),
            ("prev", "struct task_struct *"),
            ("next", "struct task_struct *"),
            ("prev_state", "unsigned int"),
        ],
    );
    let states = [
        ("S", 1),
        ("D", 2),
        ("T", 4),
        ("t", 8),
        ("X", 16),
        ("Z", 32),
        ("P", 64),
        ("I", 128),
    ];
    let task = ("p", "struct task_struct *");
    vec![
        with_symbols(switch, "prev_state", &states),
        event(
            "sched",
            "sched_waking",
            vec![
                ("comm", "char[16]", Type::COMM, at(8), through(0, &[3040])),
                ("pid", "pid_t", Type::I32, at(24), through(0, &[2464])),
                ("prio", "int", Type::I32, at(28), through(0, &[148])),
                // No argument shows it: a classic program alone can read it.
                ("target_cpu", "int", Type::I32, at(32), None),
            ],
            &[task],
        ),
        event(
            "sched",
            "sched_process_exec",
            vec![
                ("filename", "__data_loc char[]", Type::TEXT, text_at(8), None),
                ("pid", "pid_t", Type::I32, at(12), through(0, &[2464])),
                ("old_pid", "pid_t", Type::I32, at(16), through(1, &[])),
            ],
            &[task, ("old_pid", "pid_t"), ("bprm", "struct linux_binprm *")],
        ),
        event(
            "task",
            "task_rename",
            vec![
                ("pid", "pid_t", Type::I32, at(8), through(0, &[2464])),
                ("oldcomm", "char[16]", Type::COMM, at(12), through(0, &[3040])),
                ("newcomm", "char[16]", Type::COMM, at(28), None),
                ("oom_score_adj", "short", I16, at(44), through(0, &[2512, 1010])),
            ],
            &[("task", "struct task_struct *"), ("comm", "const char *")],
        ),
    ]
}

fn devices() -> Vec<Event> {
    let request = |name: &str, third: Row| {
        event(
            "block",
            name,
            vec![
                ("dev", "dev_t", Type::U32, at(8), None),
                ("sector", "sector_t", Type::U64, at(16), None),
                ("nr_sector", "unsigned int", Type::U32, at(24), None),
                third,
                ("ioprio", "unsigned short", U16, at(32), None),
                ("rwbs", "char[10]", Type::Text { capacity: 10 }, at(34), None),
                ("cmd", "__data_loc char[]", Type::TEXT, text_at(44), None),
            ],
            &[("rq", "struct request *")],
        )
    };
    let in_interrupt = |event: Event| Event {
        in_interrupt: true,
        ..event
    };
    let softirq = event(
        "irq",
        "softirq_entry",
        vec![("vec", "unsigned int", Type::U32, at(8), through(0, &[]))],
        &[("vec_nr", "unsigned int")],
    );
    let vector = |name: &str| {
        in_interrupt(event(
            "irq_vectors",
            name,
            vec![("vector", "int", Type::I32, at(8), None)],
            &[("vector", "int")],
        ))
    };
    vec![
        vector("irq_work_entry"),
        vector("irq_work_exit"),
        request(
            "block_rq_issue",
            ("bytes", "unsigned int", Type::U32, at(28), None),
        ),
        in_interrupt(request(
            "block_rq_complete",
            ("error", "int", Type::I32, at(28), None),
        )),
        event(
            "block",
            "block_touch_buffer",
            vec![
                ("dev", "dev_t", Type::U32, at(8), None),
                ("sector", "sector_t", Type::U64, at(16), None),
                ("size", "size_t", Type::U64, at(24), None),
                // Made up: what neither kind of program can read.
                ("when", "struct timespec64", Type::U64, None, None),
            ],
            &[("bh", "struct buffer_head *")],
        ),
        event(
            "kmem",
            "kmalloc",
            vec![
                ("call_site", "unsigned long", Type::U64, at(8), through(0, &[])),
                ("ptr", "const void *", Type::U64, at(16), through(1, &[])),
                ("bytes_req", "size_t", Type::U64, at(24), through(2, &[])),
                ("bytes_alloc", "size_t", Type::U64, at(32), through(3, &[])),
                ("gfp_flags", "unsigned long", Type::U64, at(40), None),
                ("node", "int", Type::I32, at(48), through(5, &[])),
            ],
            &[
                ("call_site", "unsigned long"),
                ("ptr", "const void *"),
                ("bytes_req", "size_t"),
                ("bytes_alloc", "size_t"),
                ("gfp_flags", "gfp_t"),
                ("node", "int"),
            ],
        ),
        event(
            "net",
            "net_dev_queue",
            vec![
                ("skbaddr", "void *", Type::U64, at(8), through(0, &[])),
                ("len", "unsigned int", Type::U32, at(16), through(0, &[112])),
                ("name", "__data_loc char[]", Type::TEXT, text_at(20), None),
            ],
            &[("skb", "struct sk_buff *")],
        ),
        in_interrupt(event(
            "irq",
            "irq_handler_entry",
            vec![
                ("irq", "int", Type::I32, at(8), through(0, &[])),
                ("name", "__data_loc char[]", Type::TEXT, text_at(12), None),
            ],
            &[("irq", "int"), ("action", "struct irqaction *")],
        )),
        in_interrupt(with_symbols(
            softirq,
            "vec",
            &[
                ("HI", 0),
                ("TIMER", 1),
                ("NET_TX", 2),
                ("NET_RX", 3),
                ("TWICE", 4),
                ("TWICE", 5),
            ],
        )),
        event(
            "ipi",
            "ipi_raise",
            vec![
                (
                    "target_cpus",
                    "__data_loc unsigned long[]",
                    Type::Sequence {
                        bits: 64,
                        signed: false,
                    },
                    text_at(8),
                    None,
                ),
                ("reason", "const char *", Type::U64, at(16), through(1, &[])),
            ],
            &[("mask", "const struct cpumask *"), ("reason", "const char *")],
        ),
    ]
}

fn system_calls() -> Vec<Event> {
    let number = ("__syscall_nr", "int", Type::I32);
    let six = Type::Array {
        bits: 64,
        signed: false,
        count: 6,
    };
    vec![
        event(
            "raw_syscalls",
            "sys_enter",
            vec![
                ("id", "long", Type::I64, at(8), through(1, &[])),
                ("args", "unsigned long[6]", six, at(16), None),
            ],
            &[("regs", "struct pt_regs *"), ("id", "long")],
        ),
        event(
            "raw_syscalls",
            "sys_exit",
            vec![
                ("id", "long", Type::I64, at(8), None),
                ("ret", "long", Type::I64, at(16), through(1, &[])),
            ],
            &[("regs", "struct pt_regs *"), ("ret", "long")],
        ),
        syscall(
            "sys_enter_openat",
            Origin::SyscallEnter(257),
            vec![
                number,
                ("dfd", "int", Type::I32),
                ("filename", "const char *", Type::U64),
                ("flags", "int", Type::I32),
                ("mode", "umode_t", U16),
            ],
        ),
        syscall(
            "sys_exit_openat",
            Origin::SyscallExit(257),
            vec![number, ("ret", "long", Type::I64)],
        ),
        syscall(
            "sys_enter_prctl",
            Origin::SyscallEnter(157),
            vec![
                number,
                ("option", "int", Type::I32),
                ("arg2", "unsigned long", Type::U64),
                ("arg3", "unsigned long", Type::U64),
                ("arg4", "unsigned long", Type::U64),
                ("arg5", "unsigned long", Type::U64),
            ],
        ),
        syscall(
            "sys_enter_read",
            Origin::SyscallEnter(0),
            vec![
                number,
                ("fd", "unsigned int", Type::U32),
                ("buf", "char *", Type::U64),
                ("count", "size_t", Type::U64),
            ],
        ),
        syscall(
            "sys_exit_read",
            Origin::SyscallExit(0),
            vec![number, ("ret", "long", Type::I64)],
        ),
    ]
}

/// What `args.…` leads to: event, path, type in C, type, argument, offsets.
type Member = (&'static str, &'static str, &'static str, Type, u8, &'static [u32]);

const MEMBERS: &[Member] = &[
    ("sched_switch", ".preempt", "bool", Type::Bool, 0, &[]),
    ("sched_switch", ".prev.se.vruntime", "u64", Type::U64, 1, &[208]),
    ("sched_switch", ".next.se.vruntime", "u64", Type::U64, 2, &[208]),
    ("sched_switch", ".prev.comm", "char[16]", Type::COMM, 1, &[3040]),
    ("sched_waking", ".p.policy", "unsigned int", Type::U32, 0, &[1012]),
    (
        "block_rq_issue",
        ".rq.__data_len",
        "unsigned int",
        Type::U32,
        0,
        &[44],
    ),
];

impl Schema for Fixture {
    fn events(&self) -> Vec<(&str, &str)> {
        self.events
            .iter()
            .map(|event| (event.system.as_str(), event.name.as_str()))
            .collect()
    }

    fn forbids(&self, event: (&str, &str), field: Option<&str>) -> bool {
        match field {
            None => event == ("net", "net_secret"),
            Some(field) => event == ("net", "net_dev_queue") && field.starts_with("args.skb.data"),
        }
    }

    fn unattachable(&self, system: &str, name: &str) -> Option<&str> {
        ((system, name) == ("irq_vectors", "irq_work_exit")).then_some("perf itself works by such interrupts")
    }

    fn event(&self, system: &str, name: &str) -> Option<Arc<Event>> {
        self.events
            .iter()
            .find(|event| event.system == system && event.name == name)
            .cloned()
    }

    fn argument(&self, event: &Event, steps: &[PathStep]) -> Result<Resolved, PathError> {
        let Some(PathStep::Name(argument)) = steps.first() else {
            return Err(PathError {
                step: 0,
                message: "a path begins with an argument's name".to_owned(),
                known: Vec::new(),
            });
        };
        if event.arguments.iter().all(|known| known.name != *argument) {
            return Err(PathError {
                step: 0,
                message: format!("`{}` has no argument `{argument}`", event.full_name()),
                known: event.arguments.iter().map(|known| known.name.clone()).collect(),
            });
        }
        let text: String = steps
            .iter()
            .map(|step| match step {
                PathStep::Name(name) => format!(".{name}"),
                PathStep::Index(index) => format!("[{index}]"),
            })
            .collect();
        let found = MEMBERS
            .iter()
            .find(|(name, path, ..)| *name == event.name && *path == text);
        let Some((_, _, declared, ty, argument, offsets)) = found else {
            let last = steps.len() - 1;
            return Err(PathError {
                step: last,
                message: format!("`args{text}` leads nowhere"),
                known: MEMBERS
                    .iter()
                    .filter(|(name, ..)| *name == event.name)
                    .filter_map(|(_, path, ..)| path.rsplit('.').next())
                    .map(str::to_owned)
                    .collect(),
            });
        };
        Ok(Resolved {
            ty: *ty,
            declared: (*declared).to_owned(),
            hex: false,
            recipe: Recipe::Path(walk(Base::Argument(*argument), offsets)),
            enumerators: if text == ".p.policy" {
                Symbols::from([("SCHED_LUCKY".to_owned(), 77)])
            } else {
                Symbols::default()
            },
        })
    }

    fn task_member(&self, path: &[&str]) -> Option<Resolved> {
        let (ty, declared, offsets): (Type, &str, &[u32]) = match path {
            ["comm"] => (Type::COMM, "char[16]", &[3040]),
            ["real_parent", "tgid"] => (Type::I32, "pid_t", &[2480, 2468]),
            _ => return None,
        };
        Some(Resolved {
            ty,
            declared: declared.to_owned(),
            hex: false,
            recipe: Recipe::Path(walk(Base::CurrentTask, offsets)),
            enumerators: Symbols::default(),
        })
    }

    fn enumerator(&self, name: &str) -> Vec<(String, i64)> {
        match name {
            "HRTIMER_MODE_PINNED" => vec![("hrtimer_mode".to_owned(), 2)],
            "STATE_UNKNOWN" => vec![("power_state".to_owned(), 0), ("link_state".to_owned(), 3)],
            _ => Vec::new(),
        }
    }

    fn syscall_number(&self, name: &str) -> Option<u32> {
        SYSCALLS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, number)| *number)
    }

    fn syscall_names(&self) -> Vec<&str> {
        SYSCALLS.iter().map(|(name, _)| *name).collect()
    }

    fn hz(&self) -> Option<u64> {
        Some(250)
    }

    fn architecture(&self) -> &str {
        "x86_64"
    }
}

const SYSCALLS: [(&str, u32); 5] = [
    ("read", 0),
    ("write", 1),
    ("close", 3),
    ("prctl", 157),
    ("openat", 257),
];
