//! `lkst check`: rules in, diagnostics out. Nothing is loaded.

use std::io::Write;
use std::path::PathBuf;

use lkst_rules::Options;
use lkst_rules::schema::Schema;

use super::Failed;
use crate::compile::compile_path;
use crate::session::counted;

/// What `lkst check` was asked for.
#[derive(Debug)]
pub struct CheckOptions {
    /// Rule files, packs' folders, folders of packs.
    pub paths: Vec<PathBuf>,
    /// Values for the packs' params.
    pub params: Options,
    /// A JSON array instead of text.
    pub json: bool,
    /// Colours.
    pub colour: bool,
}

/// Compiles everything; diagnostics for people go to `err`, for machines to `out`.
///
/// # Errors
/// [`Failed`] where something is wrong, after everything was said.
pub fn run(
    options: &CheckOptions,
    schema: &dyn Schema,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut good = true;
    let mut arrays = Vec::new();
    let (mut packs, mut warnings) = (0_u64, 0_u64);
    for path in &options.paths {
        let compiled = match compile_path(path, &options.params, schema) {
            Ok(compiled) => compiled,
            Err(error) => {
                good = false;
                writeln!(err, "error: {error}")?;
                continue;
            }
        };
        for pack in compiled {
            packs += 1;
            good &= pack.plan.is_some();
            warnings += pack.diagnostics.list.len() as u64;
            if options.json {
                arrays.push(pack.json());
            } else {
                write!(err, "{}", pack.rendered(options.colour))?;
            }
        }
    }
    if options.json {
        let items = arrays
            .iter()
            .map(|a| a.trim().trim_start_matches('[').trim_end_matches(']').trim());
        let items: Vec<&str> = items.filter(|items| !items.is_empty()).collect();
        writeln!(out, "[{}]", items.join(","))?;
    }
    if !good {
        return Err(Failed::Said.into());
    }
    if !options.json {
        let (packs, warnings) = (counted(packs, "pack"), counted(warnings, "warning"));
        writeln!(out, "{packs}: good, {warnings}")?;
    }
    Ok(())
}
