//! One file a subcommand; each is a function of what it needs, free of how options are written.

use lkst_probes::image::BuildError;
use lkst_probes::lower::LowerError;
use lkst_rules::diagnostic::{Diagnostic, Diagnostics, render};

use crate::compile::Compiled;
use crate::kernel::features::Missing;
use crate::kernel::load::LoadError;
use crate::kernel::schema::KernelSchema;

pub mod agent;
pub mod check;
pub mod event;
pub mod events;
pub mod explain;
pub mod orders;
pub mod run;
pub mod show;
pub mod status_view;

/// Why a command ended without doing its work, in words for people.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The input is wrong, and everything was said already.
    #[error("the rules are wrong")]
    Said,
    /// The input is wrong.
    #[error("{0}")]
    Input(String),
    /// This kernel or these privileges do not allow it.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Missing(Vec<Missing>),
}

impl Failed {
    /// The input is wrong, for this reason.
    #[must_use]
    pub fn input(error: impl std::fmt::Display) -> Failed {
        Failed::Input(error.to_string())
    }
}

/// The events and types of the running kernel.
///
/// # Errors
/// [`Failed::Missing`] where they cannot be read.
pub fn schema() -> anyhow::Result<KernelSchema> {
    Ok(KernelSchema::of_this_kernel().map_err(no_events)?)
}

/// The kernel's events cannot be read.
pub(crate) fn no_events(error: impl std::fmt::Display) -> Failed {
    Failed::Missing(vec![Missing {
        what: "the kernel's events".to_owned(),
        why: error.to_string(),
        mend: "run lkst as root, on a kernel with tracefs and BTF".to_owned(),
    }])
}

/// What the code generator could not do, as a diagnostic at its place; `None` where it has no place.
#[must_use]
pub fn build_diagnostic(error: &LowerError) -> Option<Diagnostic> {
    let (code, span, help) = match error {
        LowerError::TooLarge { span, .. } => ("E305", span, "say with `record` which fields you need"),
        LowerError::TooManyLists { span, .. } => {
            ("E312", span, "let the sets of the pack `record` the same columns")
        }
        LowerError::TwoKinds { span, .. } => (
            "E402",
            span,
            "`record` only the columns that you need, or leave `args.` out",
        ),
        LowerError::TooDeep { span } => ("E313", span, "split it over several members or rules"),
        LowerError::Asm(_)
        | LowerError::TooManyLayouts
        | LowerError::TooManyParts { .. }
        | LowerError::Full => return None,
    };
    Some(Diagnostic::error(code, *span, error.to_string()).help(help))
}

/// What the code generator could not do, worded for people.
pub(crate) fn build_failed(error: BuildError, compiled: &[Compiled]) -> anyhow::Error {
    let Some(diagnostic) = build_diagnostic(&error.error) else {
        return Failed::Input(error.error.to_string()).into();
    };
    let mut diagnostics = Diagnostics::default();
    diagnostics.push(diagnostic);
    let sources = compiled
        .get(error.pack)
        .map_or(&[][..], |pack| &pack.pack.sources);
    Failed::Input(render(&diagnostics, sources, false)).into()
}

/// What could not be loaded: a fault of the rules or of the kernel.
pub(crate) fn load_failed(error: LoadError, compiled: &[Compiled]) -> anyhow::Error {
    match error {
        LoadError::Build(error) => build_failed(error, compiled),
        other => other.into(),
    }
}
