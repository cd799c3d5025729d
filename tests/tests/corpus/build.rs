//! A pack of one file → programs, on the kernel for tests: `build/fail` (what compiles and has no program).

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use lkst::command::build_diagnostic;
use lkst_probes::features::{Costs, Features};
use lkst_probes::image;
use lkst_probes::numbers::Numbers;
use lkst_rules::diagnostic::{Diagnostics, render};
use lkst_rules::source::Source;
use lkst_rules::testing::Fixture;
use lkst_rules::{Options, Pack, compile};

use super::case::{Case, expand};

/// What is said of a pack that has no program.
pub(crate) fn fail(case: &Case) -> Result<String> {
    let text = expand(std::str::from_utf8(&case.bytes)?)?;
    let name = case.file_name();
    let pack = Pack {
        name: case.name.clone(),
        sources: vec![Source { name, text }],
    };
    let (plan, said) = compile(&pack, &Options::default(), &Fixture::default());
    let plan = plan.with_context(|| render(&said, &pack.sources, false))?;
    let features = Features {
        cpus: 2,
        long_jumps: true,
        compat_status: None,
        costs: Costs::default(),
        names: None,
    };
    let Err(error) = image::build(
        &[Arc::new(plan)],
        &features,
        &BTreeSet::new(),
        &mut Numbers::new(2),
    ) else {
        bail!("it has programs");
    };
    let diagnostic = build_diagnostic(&error.error).with_context(|| error.error.to_string())?;
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(diagnostic);
    Ok(render(&diagnostics, &pack.sources, false))
}
