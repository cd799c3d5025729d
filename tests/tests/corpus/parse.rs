//! Text → syntax tree: `parse/pass` (the tree, as canonical text) and `parse/fail` (the diagnostics).

use anyhow::{Context, Result, ensure};
use lkst_rules::diagnostic::{Diagnostics, render};
use lkst_rules::parse::{parse, source_from_bytes};
use lkst_rules::print::print;

use super::case::Case;

/// The tree of a sound file, printed. What is printed must be sound too, and print the same.
pub(crate) fn pass(case: &Case) -> Result<String> {
    let (printed, wrong) = read(&case.file_name(), case.bytes.clone());
    ensure!(wrong.is_empty(), "{wrong}");
    let (again, wrong) = read("printed.lkst", printed.clone().into_bytes());
    ensure!(wrong.is_empty(), "what was printed does not parse:\n{wrong}");
    ensure!(
        again == printed,
        "printed twice, it differs:\n{printed}\nand then:\n{again}"
    );
    Ok(printed)
}

/// What is said of a file that is not sound. A line `# repeat N: TEXT` of the case stands for N times TEXT, so that the
/// cases of limits can be read.
pub(crate) fn fail(case: &Case) -> Result<String> {
    let bytes = match std::str::from_utf8(&case.bytes) {
        Ok(text) => expand(text)?.into_bytes(),
        Err(_) => case.bytes.clone(),
    };
    let (_, wrong) = read(&case.file_name(), bytes);
    ensure!(!wrong.is_empty(), "nothing is wrong with it");
    Ok(wrong)
}

/// What was understood of a file, printed, and what is wrong with it.
fn read(name: &str, bytes: Vec<u8>) -> (String, String) {
    let mut diagnostics = Diagnostics::default();
    let source = source_from_bytes(name, bytes, 0, &mut diagnostics);
    let sources: Vec<_> = source.into_iter().collect();
    let printed = match sources.first() {
        Some(source) => print(&parse(0, &source.text, &mut diagnostics)),
        None => String::new(),
    };
    (printed, render(&diagnostics, &sources, false))
}

fn expand(text: &str) -> Result<String> {
    let mut expanded = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        match line
            .strip_prefix("# repeat ")
            .and_then(|rest| rest.split_once(": "))
        {
            Some((times, what)) => {
                expanded.push_str(
                    &what
                        .trim_end_matches('\n')
                        .repeat(times.parse().context("how often")?),
                );
                expanded.push('\n');
            }
            None => expanded.push_str(line),
        }
    }
    Ok(expanded)
}
