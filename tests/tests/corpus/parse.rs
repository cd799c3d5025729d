//! Text → syntax tree: `parse/pass` (the tree, as canonical text) and `parse/fail` (the diagnostics).

use anyhow::{Result, ensure};
use lkst_rules::diagnostic::{Diagnostics, render};
use lkst_rules::parse::{parse, source_from_bytes};
use lkst_rules::print::print;

use super::case::{Case, expand};

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

/// What is said of a file that is not sound, after [`expand`].
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
