//! A pack of one file → plan, on the kernel for tests: `check/pass` (the plan) and `check/fail` (errors and warnings).
//!
//! A line `# host NAME = VALUE` of a case is what the host says about a param.

use anyhow::{Result, ensure};
use lkst_rules::diagnostic::render;
use lkst_rules::source::Source;
use lkst_rules::testing::Fixture;
use lkst_rules::{Options, Pack, compile};

use super::case::{Case, expand};

/// The plan of a pack with which nothing is wrong.
pub(crate) fn pass(case: &Case) -> Result<String> {
    let (plan, said) = read(case)?;
    ensure!(said.is_empty(), "{said}");
    Ok(plan.unwrap_or_default())
}

/// What is said of a pack.
pub(crate) fn fail(case: &Case) -> Result<String> {
    let (plan, said) = read(case)?;
    ensure!(!said.is_empty(), "nothing is wrong with it");
    ensure!(
        plan.is_some() != said.contains("error["),
        "there is a plan if and only if there is no error:\n{said}"
    );
    Ok(said)
}

/// The printed plan, and what was said.
fn read(case: &Case) -> Result<(Option<String>, String)> {
    let text = expand(std::str::from_utf8(&case.bytes)?)?;
    let host = text
        .lines()
        .filter_map(|line| line.strip_prefix("# host ")?.split_once(" = "));
    let options = Options {
        params: host
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        ..Options::default()
    };
    let name = case.file_name();
    let pack = Pack {
        name: case.name.clone(),
        sources: vec![Source { name, text }],
    };
    let (plan, diagnostics) = compile(&pack, &options, &Fixture::default());
    Ok((
        plan.map(|plan| plan.to_string()),
        render(&diagnostics, &pack.sources, false),
    ))
}
