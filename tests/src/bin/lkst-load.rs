//! Makes known events, as the COMMAND of `lkst run` or beside it. What it does is its first argument.

use std::process::{Command, ExitCode};
use std::time::Duration;

use lkst_tests::worker::{cpus, mark, pin, rename};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let arguments: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    let done = match arguments[..] {
        ["switch", base] => base.parse().map(switch).is_ok(),
        ["family", base] => base.parse().map(family).is_ok(),
        ["member", base, generation] => match (base.parse(), generation.parse()) {
            (Ok(base), Ok(generation)) => member(base, generation),
            _ => false,
        },
        ["wait"] => wait(),
        _ => false,
    };
    if done {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// 50,000 renames, a trigger, 50,000 more, and some after its 50 ms.
fn switch(base: u32) {
    if let Some(cpu) = cpus().first() {
        pin(*cpu);
    }
    (0..50_000).for_each(|serial| rename(b'a', serial));
    mark(base + 1, [50_000, 0, 0, 0]);
    (50_000..100_000).for_each(|serial| rename(b'a', serial));
    std::thread::sleep(Duration::from_millis(400));
    (100_000..100_010).for_each(|serial| rename(b'a', serial));
    std::thread::sleep(Duration::from_millis(300));
}

/// Marks by this process, by a thread of it, by a child and by a grandchild with a thread each.
fn family(base: u32) {
    member(base, 0);
}

fn member(base: u32, generation: u32) -> bool {
    let marks = move |thread: u32| {
        for number in 0..100_u64 {
            mark(base, [generation.into(), thread.into(), number, 0]);
        }
    };
    marks(0);
    if std::thread::spawn(move || marks(1)).join().is_err() {
        return false;
    }
    if generation == 2 {
        return true;
    }
    let Ok(program) = std::env::current_exe() else {
        return false;
    };
    let child = Command::new(program)
        .args(["member", &base.to_string(), &(generation + 1).to_string()])
        .status();
    child.is_ok_and(|status| status.success())
}

/// Until it is killed.
fn wait() -> bool {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
