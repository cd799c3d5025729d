//! `lkst explain`: every stage that rules go through, printed.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use lkst_probes::disasm::listing;
use lkst_probes::image;
use lkst_probes::numbers::Numbers;
use lkst_rules::Options;
use lkst_rules::diagnostic::Diagnostics;
use lkst_rules::parse::parse;
use lkst_rules::print::print;
use lkst_rules::schema::Schema;

use super::run::generator_features;
use super::{Failed, build_failed};
use crate::compile::compile_path;

/// A stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// What was written, in canonical form.
    Ast,
    /// What it means: names looked up, types checked.
    Plan,
    /// The programs, an instruction a line.
    Asm,
    /// The maps.
    Maps,
}

/// What `lkst explain` was asked for.
#[derive(Debug)]
pub struct ExplainOptions {
    /// A rule file, a pack's folder or a folder of packs.
    pub path: PathBuf,
    /// Which stage.
    pub stage: Stage,
    /// Values for the packs' params.
    pub params: Options,
    /// Colours in diagnostics.
    pub colour: bool,
}

/// Prints a stage.
///
/// # Errors
/// [`Failed`] where the rules are wrong.
pub fn run(options: &ExplainOptions, schema: &dyn Schema, out: &mut dyn Write) -> anyhow::Result<()> {
    let compiled = compile_path(&options.path, &options.params, schema).map_err(Failed::input)?;
    for pack in &compiled {
        eprint!("{}", pack.rendered(options.colour));
    }
    if options.stage == Stage::Ast {
        for (source, number) in compiled.iter().flat_map(|pack| &pack.pack.sources).zip(0..) {
            writeln!(out, "# {}", source.name)?;
            write!(
                out,
                "{}",
                print(&parse(number, &source.text, &mut Diagnostics::default()))
            )?;
        }
    }
    let plans: Vec<_> = compiled.iter().filter_map(|pack| pack.plan.clone()).collect();
    if plans.len() < compiled.len() {
        return Err(Failed::Said.into());
    }
    match options.stage {
        Stage::Ast => {}
        Stage::Plan => {
            for plan in &plans {
                write!(out, "{plan}")?;
            }
        }
        Stage::Asm | Stage::Maps => {
            let features = generator_features(schema)?;
            let image = image::build(
                &plans,
                &features,
                &BTreeSet::new(),
                &mut Numbers::new(features.cpus),
            )
            .map_err(|error| build_failed(error, &compiled))?;
            if options.stage == Stage::Maps {
                writeln!(
                    out,
                    "{:<14} {:<9} {:>12} {:>12}",
                    "map", "kind", "value bytes", "entries"
                )?;
                for map in &image.maps {
                    let kind = format!("{:?}", map.kind).to_lowercase();
                    let name = map.map.to_string();
                    writeln!(
                        out,
                        "{name:<14} {kind:<9} {:>12} {:>12}",
                        map.value_bytes, map.entries
                    )?;
                }
                return Ok(());
            }
            for program in &image.programs {
                let kind = if program.attach.typed { "typed" } else { "classic" };
                writeln!(
                    out,
                    "{}:{} ({kind}), {} instructions",
                    program.attach.system, program.attach.name, program.instructions
                )?;
                for part in &program.parts {
                    writeln!(out, "{}", listing(part))?;
                }
            }
        }
    }
    Ok(())
}
