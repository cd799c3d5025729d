//! From paths to plans: what `run`, `check` and `explain` have in common.
//!
//! In: paths as the user gave them, a schema. Out: plans, and on the way every diagnostic of every pack, in one go.

use std::path::Path;
use std::sync::Arc;

use lkst_rules::diagnostic::{Diagnostics, render, to_json};
use lkst_rules::plan::Plan;
use lkst_rules::schema::Schema;
use lkst_rules::{Options, Pack, compile};

use crate::pack::{PackText, ReadError, read};

/// A pack and what was said of it.
#[derive(Debug)]
pub struct Compiled {
    /// The pack.
    pub pack: Pack,
    /// Its plan, unless an error was found.
    pub plan: Option<Arc<Plan>>,
    /// Everything that was found.
    pub diagnostics: Diagnostics,
}

impl Compiled {
    /// The diagnostics for people.
    #[must_use]
    pub fn rendered(&self, colour: bool) -> String {
        render(&self.diagnostics, &self.pack.sources, colour)
    }

    /// The diagnostics for machines: a JSON array.
    #[must_use]
    pub fn json(&self) -> String {
        to_json(&self.diagnostics, &self.pack.sources)
    }
}

/// Reads and compiles every pack of a path.
///
/// # Errors
/// [`ReadError`] where the path holds no packs that could be read.
pub fn compile_path(path: &Path, options: &Options, schema: &dyn Schema) -> Result<Vec<Compiled>, ReadError> {
    let texts = read(path)?.packs.into_iter();
    Ok(texts.map(|text| compile_text(text, options, schema)).collect())
}

/// Compiles one pack that was read.
#[must_use]
pub fn compile_text(text: PackText, options: &Options, schema: &dyn Schema) -> Compiled {
    let PackText {
        pack,
        mut diagnostics,
        hash: _,
    } = text;
    let (plan, more) = if diagnostics.has_errors() {
        (None, Diagnostics::default())
    } else {
        compile(&pack, options, schema)
    };
    diagnostics.list.extend(more.list);
    Compiled {
        pack,
        plan: plan.map(Arc::new),
        diagnostics,
    }
}
