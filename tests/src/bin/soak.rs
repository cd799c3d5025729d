//! The soak: an agent for as long as you like, under everything that a bad day has, and what it held to meanwhile.
//!
//! ```text
//! cargo run --release -p lkst-tests --bin soak -- --minutes 30
//! ```
//!
//! In cycles: the agent is killed (`kill -9`) at random during triggers, reloads and saves; then it lives through as
//! many of them; then nothing fires and it is to be still. Every CPU is busy with some 60 traced events, and numbers
//! each of a few hundred a second: every number must be in exactly one trace in the end. A table shows what was
//! measured and what is allowed; the exit code is 1 where something is not.
//!
//! As `soak agent …` and with lkst's other subcommands this program is lkst: one build gives all.

use std::process::ExitCode;
use std::time::Duration;

use lkst_tests::soak::{Plan, run};

/// The subcommands of lkst that the soak uses.
const LKST: [&str; 5] = ["agent", "status", "save", "switch", "reload"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let minutes: f64 = match arguments[..] {
        [first, ..] if LKST.contains(&first) => return lkst::cli::main(),
        [] => 30.0,
        ["--minutes", minutes] => match minutes.parse() {
            Ok(minutes) if (1.0..100_000.0).contains(&minutes) => minutes,
            _ => return usage(),
        },
        _ => return usage(),
    };
    let plan = match Plan::of(Duration::from_secs_f64(minutes * 60.0)) {
        Ok(plan) => plan,
        Err(error) => {
            eprintln!("soak: {error:#}");
            return ExitCode::from(1);
        }
    };
    let (table, ended) = run(&plan);
    println!("{table}");
    if let Err(error) = &ended {
        eprintln!("soak: {error:#}");
    }
    match ended.is_ok() && table.is_good() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(1),
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: soak [--minutes N]   N is 1 or more; 30 where it is not given");
    ExitCode::from(2)
}
