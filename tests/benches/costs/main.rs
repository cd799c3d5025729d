//! What lkst costs beside its peers: ratios in one run, medians of interleaved rounds.
//!
//! ```text
//! cargo bench -p lkst-tests --bench costs                    all of it, as a table
//! cargo bench -p lkst-tests --bench costs -- --only hits     a part: hits, switches, cpus, budget, …
//! cargo bench -p lkst-tests --bench costs -- --write         puts the table into docs/performance.md
//! ```
//!
//! It needs root, and Debian's packages bpftrace, linux-perf and babeltrace2. Nothing here passes or fails by time: the
//! table says which target is met.

mod budget;
mod hits;
mod loads;
mod report;
mod rounds;
mod tracers;
mod whole;

use anyhow::{Context as _, Result, bail};
use lkst_tests::lab::Lab;

use report::Report;

/// The command `lkst` that is measured.
const LKST: &str = env!("CARGO_BIN_EXE_lkst-under-test");

/// What was asked for.
struct Options {
    rounds: usize,
    only: Option<String>,
    write: bool,
}

fn options() -> Result<Options> {
    let mut options = Options {
        rounds: 21,
        only: None,
        write: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => options.rounds = arguments.next().context("--rounds N")?.parse()?,
            "--only" => options.only = Some(arguments.next().context("--only PART")?),
            "--write" => options.write = true,
            // From cargo.
            "--bench" => {}
            other => bail!("`{other}`: only --rounds N, --only PART and --write are known"),
        }
    }
    Ok(options)
}

type Part = fn(&Lab, usize, &mut Report) -> Result<()>;

const PARTS: [(&str, Part); 7] = [
    ("hits", hits::hits),
    ("switches", hits::switches),
    ("cpus", hits::two_cpus),
    ("budget", budget::budget),
    ("stream", whole::stream),
    ("show", whole::show),
    ("load", whole::compile_and_load),
];

fn main() -> Result<()> {
    let options = options()?;
    let lab = Lab::open("costs")?.context("this kernel, or these privileges, do not allow it")?;
    let mut report = Report::default();
    let mut failed = Vec::new();
    for (name, part) in PARTS {
        if options.only.as_ref().is_none_or(|only| only == name)
            && let Err(error) = part(&lab, options.rounds, &mut report)
        {
            // What the others have measured is not lost.
            eprintln!("\n{name}: {error:#}");
            failed.push(name);
        }
    }
    print!("{report}");
    if options.write {
        report.write()?;
    }
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}
