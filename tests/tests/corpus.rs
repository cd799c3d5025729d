//! The corpus of cases: a folder a kind, one test a file, the expectation beside it.
//!
//! In: `tests/corpus/KIND/**/NAME.lkst`. Out: a test `KIND/NAME` for each. `LKST_BLESS=1` writes what is instead of
//! comparing it with what should be; read the difference before you commit it.
//!
//! A kind is a row of [`KINDS`]: a folder, the ending of its expectations, and a function from the case to the text that
//! is expected. To add one, add a folder, a function and a row.

mod corpus {
    pub(crate) mod build;
    pub(crate) mod case;
    pub(crate) mod check;
    pub(crate) mod parse;
}

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use corpus::case::{Case, cases};
use libtest_mimic::{Arguments, Trial};

/// A kind of case.
struct Kind {
    /// Below `tests/corpus`.
    folder: &'static str,
    /// The expectation of `x.lkst` is `x.ENDING`.
    ending: &'static str,
    /// What a case gives.
    run: fn(&Case) -> Result<String>,
}

const KINDS: &[Kind] = &[
    Kind {
        folder: "parse/pass",
        ending: "ast",
        run: corpus::parse::pass,
    },
    Kind {
        folder: "parse/fail",
        ending: "stderr",
        run: corpus::parse::fail,
    },
    Kind {
        folder: "check/pass",
        ending: "plan",
        run: corpus::check::pass,
    },
    Kind {
        folder: "check/fail",
        ending: "stderr",
        run: corpus::check::fail,
    },
    Kind {
        folder: "build/fail",
        ending: "stderr",
        run: corpus::build::fail,
    },
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    match trials(&root) {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("the corpus cannot be read: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn trials(root: &Path) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    for kind in KINDS {
        let cases = cases(root, kind.folder, "lkst")?;
        ensure!(!cases.is_empty(), "{} has no cases", kind.folder);
        for case in cases {
            let name = format!("{}/{}", kind.folder, case.name);
            let test = move || {
                let is = (kind.run)(&case)?;
                Ok(case.compare(kind.ending, &is)?)
            };
            trials.push(Trial::test(name, test));
        }
    }
    let root = root.to_owned();
    trials.push(Trial::test("every_code_has_a_case", move || {
        Ok(every_code_has_a_case(&root)?)
    }));
    Ok(trials)
}

/// A code that no case fails with is one that nobody has seen.
fn every_code_has_a_case(root: &Path) -> Result<()> {
    let mut seen = BTreeSet::new();
    for kind in KINDS {
        for case in cases(root, kind.folder, kind.ending)? {
            let text = String::from_utf8(case.bytes).with_context(|| case.name.clone())?;
            for (at, _) in text.match_indices('[') {
                if let Some((code, _)) = text.get(at + 1..).and_then(|rest| rest.split_once("]: ")) {
                    seen.insert(code.to_owned());
                }
            }
        }
    }
    let missing: Vec<_> = lkst_rules::codes::all()
        .filter(|code| !seen.contains(code.code))
        .collect();
    ensure!(
        missing.is_empty(),
        "no case of the corpus fails with {missing:#?}"
    );
    Ok(())
}
