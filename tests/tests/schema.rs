//! The schema of the kernel that runs the tests, held against the kernel itself.
//!
//! Without tracefs or root these say that they are skipped; `LKST_REQUIRE_KERNEL=1` makes that a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lkst::kernel::bpf_syscall::{self, Instruction, ProgramType, instruction};
use lkst::kernel::btf::{Btf, Kind};
use lkst::kernel::format;
use lkst::kernel::schema::{BTF_PATH, KernelSchema};
use lkst::kernel::tracefs::Tracefs;
use lkst_probes::catalogue;
use lkst_rules::schema::{
    Base, Event, Origin, Path, PathStep, Place, Recipe, Resolved, Schema, Symbols, Type,
};
use lkst_tests::{kernel_schema, kernel_takes_programs};

fn steps(path: &str) -> Vec<PathStep> {
    path.split('.')
        .map(|name| PathStep::Name(name.to_owned()))
        .collect()
}

fn event(schema: &KernelSchema, name: &str) -> anyhow::Result<std::sync::Arc<Event>> {
    let (system, name) = name.split_once(':').ok_or_else(|| anyhow::anyhow!("{name}"))?;
    schema
        .event(system, name)
        .ok_or_else(|| anyhow::anyhow!("this kernel has no {system}:{name}"))
}

fn size_of(ty: Type) -> Option<usize> {
    match ty {
        Type::Int { bits, .. } => Some(usize::from(bits) / 8),
        Type::Bool => Some(1),
        Type::Duration => Some(8),
        Type::Array { bits, count, .. } => Some(usize::from(bits) / 8 * usize::from(count)),
        Type::Text { .. } | Type::Sequence { .. } => None,
    }
}

#[test]
fn every_format_is_understood() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("every_format_is_understood")? else {
        return Ok(());
    };
    let began = Instant::now();
    let mut problems = Vec::new();
    let mut read = 0;
    for (system, name) in schema.events() {
        let full = format!("{system}:{name}");
        let parsed = format::parse(&schema.tracefs().format(system, name)?);
        let (Ok(parsed), Some(event)) = (parsed, schema.event(system, name)) else {
            problems.push(format!("{full}: not understood"));
            continue;
        };
        read += 1;
        if parsed.name != name {
            problems.push(format!("{full}: named {}", parsed.name));
        }
        if event.fields.len() != parsed.fields.len() {
            problems.push(format!(
                "{full}: {} of {} fields",
                event.fields.len(),
                parsed.fields.len()
            ));
        }
        let mut end = 0;
        for (field, raw) in event.fields.iter().zip(&parsed.fields) {
            if raw.offset < end {
                problems.push(format!("{full}: {} overlaps the field before", raw.name));
            }
            end = raw.offset + raw.size;
            let whole = match field.place {
                Some(Place::At(_)) => size_of(field.ty).is_none_or(|size| size == usize::from(raw.size)),
                Some(_) => raw.size == 4,
                None => event.origin != Origin::Tracepoint,
            };
            if !whole {
                problems.push(format!(
                    "{full}: {} is {:?} in {} bytes",
                    raw.name, field.ty, raw.size
                ));
            }
        }
    }
    println!("{read} events in {:?}", began.elapsed());
    assert_eq!(problems, Vec::<String>::new());
    assert!(read > 500, "{read}");
    Ok(())
}

#[test]
fn every_system_call_has_its_number() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("every_system_call_has_its_number")? else {
        return Ok(());
    };
    let mut numbers = BTreeMap::new();
    for (system, name) in schema
        .events()
        .into_iter()
        .filter(|(system, _)| *system == "syscalls")
    {
        let event = event(&schema, &format!("{system}:{name}"))?;
        match event.origin {
            Origin::Tracepoint => anyhow::bail!("{name} has no number"),
            Origin::SyscallEnter(number) => {
                if let Some(other) = numbers.insert(number, name.to_owned()) {
                    anyhow::bail!("{name} and {other} are both {number}");
                }
                for (index, field) in event.fields.iter().enumerate() {
                    let expected = match index.checked_sub(1) {
                        None => Recipe::SyscallNumber,
                        Some(argument) => Recipe::SyscallArgument(u8::try_from(argument)?),
                    };
                    assert_eq!(field.recipe, Some(expected), "{name} {}", field.name);
                }
            }
            Origin::SyscallExit(_) => {
                assert_eq!(
                    event.fields.last().and_then(|f| f.recipe.clone()),
                    Some(Recipe::SyscallReturn),
                    "{name}"
                );
            }
        }
    }
    assert!(numbers.len() > 250, "{}", numbers.len());
    Ok(())
}

/// ftrace writes the number of each call beside the name of its event.
#[test]
fn numbers_are_those_that_ftrace_sees() -> anyhow::Result<()> {
    use std::fs;
    let Some(schema) = kernel_schema("numbers_are_those_that_ftrace_sees")? else {
        return Ok(());
    };
    if !schema.tracefs().root().join("options/fields").exists() {
        eprintln!(
            "numbers_are_those_that_ftrace_sees: skipped: this kernel (before 6.4) shows no raw fields"
        );
        return Ok(());
    }
    let instance = schema
        .tracefs()
        .root()
        .join(format!("instances/lkst-test-{}", std::process::id()));
    fs::create_dir(&instance)?;
    let calls = [
        "newuname",
        "newfstat",
        "newstat",
        "newlstat",
        "sendfile64",
        "umount",
        "getpid",
        "openat",
    ];
    let seen = (|| -> std::io::Result<String> {
        for call in calls {
            fs::write(
                instance.join(format!("events/syscalls/sys_enter_{call}/enable")),
                "1",
            )?;
        }
        fs::write(instance.join("options/fields"), "1")?;
        // SAFETY: each call gets valid pointers or a descriptor or path that does not exist.
        unsafe {
            let mut name = std::mem::zeroed::<libc::utsname>();
            libc::uname(&raw mut name);
            libc::syscall(libc::SYS_getpid);
            libc::syscall(libc::SYS_sendfile, -1, -1, 0, 0);
            libc::umount2(c"/nowhere".as_ptr(), 0);
            let mut stat = std::mem::zeroed::<libc::stat>();
            libc::syscall(libc::SYS_openat, -1, c"/nowhere".as_ptr(), 0);
            #[cfg(target_arch = "x86_64")]
            {
                libc::syscall(libc::SYS_stat, c"/nowhere".as_ptr(), &raw mut stat);
                libc::syscall(libc::SYS_lstat, c"/nowhere".as_ptr(), &raw mut stat);
            }
            libc::syscall(libc::SYS_fstat, -1, &raw mut stat);
        }
        fs::read_to_string(instance.join("trace"))
    })();
    for call in calls {
        let _ = fs::write(
            instance.join(format!("events/syscalls/sys_enter_{call}/enable")),
            "0",
        );
    }
    fs::remove_dir(&instance)?;
    let seen = seen?;
    let mut found = 0;
    for call in calls {
        let Origin::SyscallEnter(number) = event(&schema, &format!("syscalls:sys_enter_{call}"))?.origin
        else {
            anyhow::bail!("{call} has no number");
        };
        let shown = format!("sys_enter_{call}: __syscall_nr={number:#x} ");
        found += usize::from(seen.contains(&shown));
    }
    assert_eq!(found, calls.len(), "{seen}");
    Ok(())
}

#[test]
fn every_row_of_the_catalogue_holds_here() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("every_row_of_the_catalogue_holds_here")? else {
        return Ok(());
    };
    let mut missing = Vec::new();
    let mut covered = 0;
    let names: BTreeSet<_> = catalogue::rows()?.into_iter().map(|row| row.event).collect();
    for name in names {
        // Events of other kernels and configurations are in the catalogue too.
        let Ok(event) = event(&schema, &name) else {
            continue;
        };
        if event.fields.iter().all(|field| field.recipe.is_some()) {
            covered += 1;
        } else {
            missing.push(name);
        }
    }
    println!("{covered} events are covered");
    assert_eq!(missing, Vec::<String>::new());
    assert!(covered >= 250, "{covered}");
    Ok(())
}

#[test]
fn sched_switch_is_what_it_is_known_to_be() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("sched_switch_is_what_it_is_known_to_be")? else {
        return Ok(());
    };
    let event = event(&schema, "sched:sched_switch")?;
    let ty = |name| event.field(name).map(|f| f.ty);
    assert_eq!(ty("prev_comm"), Some(Type::COMM));
    assert_eq!(ty("prev_pid"), Some(Type::I32));
    assert_eq!(ty("prev_state"), Some(Type::I64));
    let states = event
        .field("prev_state")
        .map(|f| f.symbols.clone())
        .unwrap_or_default();
    for (state, value) in [("S", 1), ("D", 2), ("T", 4)] {
        assert!(states.contains(&(state.to_owned(), value)), "{states:?}");
    }
    let arguments: Vec<_> = event
        .arguments
        .iter()
        .map(|a| (a.name.as_str(), a.declared.as_str()))
        .collect();
    assert!(
        arguments.contains(&("prev", "struct task_struct *")),
        "{arguments:?}"
    );

    let vruntime = schema
        .argument(&event, &steps("prev.se.vruntime"))
        .map_err(|e| anyhow::anyhow!("{e:?}"))?;
    assert_eq!(vruntime.ty, Type::U64);
    let Err(error) = schema.argument(&event, &steps("prev.se.vruntimes")) else {
        anyhow::bail!("found")
    };
    assert_eq!(error.step, 2);
    assert!(error.known.contains(&"vruntime".to_owned()), "{error:?}");
    let tgid = schema
        .task_member(&["real_parent", "tgid"])
        .ok_or_else(|| anyhow::anyhow!("no parent"))?;
    assert_eq!(tgid.ty, Type::I32);
    assert!(
        schema
            .enumerator("TCP_LISTEN")
            .iter()
            .any(|(_, value)| *value == 10)
    );
    assert_eq!(
        schema.syscall_number("openat"),
        Some(u32::try_from(libc::SYS_openat)?)
    );
    Ok(())
}

#[test]
fn what_points_into_other_memory_is_refused() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("what_points_into_other_memory_is_refused")? else {
        return Ok(());
    };
    let event = event(&schema, "sched:sched_switch")?;
    let Err(error) = schema.argument(&event, &steps("prev.robust_list.list.next")) else {
        anyhow::bail!("found")
    };
    assert!(error.message.contains("user memory"), "{error:?}");
    Ok(())
}

#[test]
fn the_kernels_own_types_are_read() -> anyhow::Result<()> {
    let Some(_) = kernel_schema("the_kernels_own_types_are_read")? else {
        return Ok(());
    };
    let bytes = std::fs::read(BTF_PATH)?;
    let began = Instant::now();
    let btf = Btf::parse(bytes)?;
    let parsed = began.elapsed();
    println!("{btf:?} in {parsed:?}");
    assert!(btf.find(Kind::Struct, "task_struct").is_some());
    Ok(())
}

#[test]
fn a_mount_of_our_own_is_seen_by_nobody() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("a_mount_of_our_own_is_seen_by_nobody")? else {
        return Ok(());
    };
    let before = std::fs::read_to_string("/proc/self/mountinfo")?;
    let tracefs = Tracefs::private()?;
    assert_eq!(tracefs.events()?.len(), schema.events().len());
    assert!(tracefs.format("sched", "sched_switch")?.contains("prev_pid"));
    assert!(tracefs.format("sched", "../sched/sched_switch").is_err());
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo")?, before);
    Ok(())
}

#[test]
fn hz_is_the_configured_one() -> anyhow::Result<()> {
    let Some(schema) = kernel_schema("hz_is_the_configured_one")? else {
        return Ok(());
    };
    let Ok(output) = std::process::Command::new("zcat").arg("/proc/config.gz").output() else {
        return Ok(());
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let configured = text
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_HZ=")?.parse().ok());
    if configured.is_some() {
        assert_eq!(schema.hz(), configured);
    }
    Ok(())
}

/// Instructions that walk a path by plain loads as far as it is direct; R6 holds the context.
fn walk(path: &Path, ty: Type) -> Vec<Instruction> {
    const JUMP_IF_NULL: u8 = 0x15;
    const LOAD: [(u8, u8); 4] = [(8, 0x71), (16, 0x69), (32, 0x61), (64, 0x79)];
    let load = |bits: u8, offset: i16| {
        LOAD.iter()
            .find(|(b, _)| *b == bits)
            .map(|(_, code)| instruction(*code, 1, 1, offset, 0))
    };
    let mut program = match path.base {
        Base::Argument(number) => vec![instruction(0x79, 1, 6, i16::from(number) * 8, 0)],
        Base::CurrentTask => vec![instruction(0x85, 0, 0, 0, 158), instruction(0xbf, 1, 0, 0, 0)],
    };
    let mut loads = Vec::new();
    for (index, hop) in path.hops.iter().enumerate() {
        let Ok(offset) = i16::try_from(hop.offset) else {
            break;
        };
        if !hop.direct {
            break;
        }
        let last = index + 1 == path.hops.len();
        let bits = match ty {
            _ if !last || path.text_behind => 64,
            Type::Int { bits, .. } | Type::Array { bits, .. } => bits,
            Type::Text { capacity } if capacity >= 8 => 64,
            _ => 8,
        };
        let Some(load) = load(bits, offset) else { break };
        loads.push(load);
    }
    // Over the rest of this path, should the pointer be null.
    for (index, load) in loads.iter().enumerate() {
        let over = i16::try_from(2 * (loads.len() - index) - 1).unwrap_or(1);
        program.push(instruction(JUMP_IF_NULL, 1, 0, over, 0));
        program.push(*load);
    }
    program
}

fn loads(tracepoint: &str, schema: &KernelSchema, body: &[Instruction]) -> Result<(), String> {
    let btf = schema.btf().ok_or("no BTF")?;
    let typedef = btf
        .find(Kind::Typedef, &format!("btf_trace_{tracepoint}"))
        .ok_or("no such tracepoint")?;
    let mut program = vec![instruction(0xbf, 6, 1, 0, 0)];
    program.extend_from_slice(body);
    program.extend([instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]);
    match bpf_syscall::load(
        ProgramType::RawTracepointBtf(typedef.id),
        &program,
        None,
        "lkst_schema",
    ) {
        Ok(_) => Ok(()),
        Err(refused) => Err(refused.to_string()),
    }
}

/// A skipped load leaves a scalar or null in R1, so each path is a program of its own.
fn accepts(schema: &KernelSchema, event: &Event, resolved: &Resolved) -> Result<(), String> {
    for (path, ty) in paths(&resolved.recipe, resolved.ty) {
        loads(&event.name, schema, &walk(path, ty)).map_err(|error| format!("{path:?}: {error}"))?;
    }
    Ok(())
}

/// The paths of a recipe, and as what their ends are loaded.
fn paths(recipe: &Recipe, ty: Type) -> Vec<(&Path, Type)> {
    match recipe {
        Recipe::Path(path) => vec![(path, ty)],
        Recipe::Siginfo { member, .. } => vec![(member, ty)],
        Recipe::SwitchState { exit_state, .. } => vec![(exit_state, Type::I32)],
        Recipe::TextOr { pointer, of, .. } => vec![(pointer, Type::U64), (of, ty)],
        Recipe::As { of, bits, signed } => paths(
            of,
            Type::Int {
                bits: *bits,
                signed: *signed,
            },
        ),
        Recipe::Binary { a, b, .. } => [a, b].into_iter().flat_map(|side| paths(side, ty)).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn the_verifier_takes_what_is_called_direct() -> anyhow::Result<()> {
    let name = "the_verifier_takes_what_is_called_direct";
    let (Some(schema), true) = (kernel_schema(name)?, kernel_takes_programs(name)?) else {
        return Ok(());
    };
    let mut refused = Vec::new();
    let mut tried = 0;
    for (system, name) in schema.events() {
        let event = event(&schema, &format!("{system}:{name}"))?;
        for field in &event.fields {
            let Some(recipe) = field
                .recipe
                .clone()
                .filter(|_| event.origin == Origin::Tracepoint)
            else {
                continue;
            };
            let resolved = Resolved {
                ty: field.ty,
                declared: String::new(),
                hex: false,
                recipe,
                enumerators: Symbols::from([]),
            };
            tried += 1;
            if let Err(error) = accepts(&schema, &event, &resolved) {
                refused.push(format!("{system}:{name} {}: {error}", field.name));
            }
        }
        for argument in &event.arguments {
            // A sample of the members: the first, the last, some between.
            let members = schema.argument_members(&event, &argument.name);
            let paths = members
                .iter()
                .step_by(members.len() / 4 + 1)
                .chain(members.last());
            let mut paths: Vec<_> = paths
                .map(|(member, _)| format!("{}.{member}", argument.name))
                .collect();
            // And one hop further, where a member is a pointer to a structure.
            let deeper = paths.iter().filter_map(|path| {
                let error = schema.argument(&event, &steps(&format!("{path}.?"))).err()?;
                Some(format!("{path}.{}", error.known.get(error.known.len() / 2)?))
            });
            let deeper: Vec<_> = deeper.collect();
            paths.extend(deeper);
            paths.push(argument.name.clone());
            for path in paths {
                let resolved = match schema.argument(&event, &steps(&path)) {
                    Ok(resolved) => resolved,
                    Err(error) => {
                        // What is said to be refused must be.
                        let refused_by_us = error.step == 0 && error.message.contains("no program");
                        let index = event
                            .arguments
                            .iter()
                            .position(|a| a.name == argument.name)
                            .unwrap_or(0);
                        let load = instruction(0x79, 1, 6, i16::try_from(index * 8)?, 0);
                        if refused_by_us && loads(&event.name, &schema, &[load]).is_ok() {
                            refused.push(format!("{system}:{name} {path}: can be read after all"));
                        }
                        continue;
                    }
                };
                tried += 1;
                if let Err(error) = accepts(&schema, &event, &resolved) {
                    refused.push(format!("{system}:{name} {path}: {error}"));
                }
            }
        }
    }
    println!("{tried} paths, {} refused", refused.len());
    assert_eq!(refused, Vec::<String>::new());
    Ok(())
}
