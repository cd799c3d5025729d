//! `lkst explain`: every stage that rules go through, printed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;

use lkst_probes::asm::Priced;
use lkst_probes::disasm::listing;
use lkst_probes::features::{Costs, Features};
use lkst_probes::image::{self, Image, ProgramImage};
use lkst_probes::numbers::Numbers;
use lkst_rules::Options;
use lkst_rules::diagnostic::Diagnostics;
use lkst_rules::parse::parse;
use lkst_rules::print::print;

use super::run::generator_features;
use super::{Failed, build_failed};
use crate::compile::compile_path;
use crate::kernel::costs::measure;
use crate::kernel::load::Environment;
use crate::kernel::schema::KernelSchema;

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
    /// What hits and records cost on this host.
    Cost,
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
pub fn run(options: &ExplainOptions, schema: &KernelSchema, out: &mut dyn Write) -> anyhow::Result<()> {
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
        Stage::Asm | Stage::Maps | Stage::Cost => {
            let mut features = generator_features(schema)?;
            if options.stage == Stage::Cost {
                features.costs = host_costs(schema, &features, out)?;
            }
            let numbers = &mut Numbers::new(features.cpus);
            let image = image::build(&plans, &features, &BTreeSet::new(), numbers)
                .map_err(|error| build_failed(error, &compiled))?;
            match options.stage {
                Stage::Maps => maps(&image, out)?,
                Stage::Cost => costs(&image, out)?,
                _ => programs(&image, out)?,
            }
        }
    }
    Ok(())
}

fn kind(program: &ProgramImage) -> &'static str {
    if program.attach.typed { "typed" } else { "classic" }
}

fn maps(image: &Image, out: &mut dyn Write) -> std::io::Result<()> {
    let heads = ["map", "kind", "value bytes", "entries"];
    writeln!(
        out,
        "{:<16} {:<9} {:>12} {:>12}",
        heads[0], heads[1], heads[2], heads[3]
    )?;
    for map in &image.maps {
        let kind = format!("{:?}", map.kind).to_lowercase();
        let name = map.map.to_string();
        writeln!(
            out,
            "{name:<16} {kind:<9} {:>12} {:>12}",
            map.value_bytes, map.entries
        )?;
    }
    Ok(())
}

fn programs(image: &Image, out: &mut dyn Write) -> std::io::Result<()> {
    for program in &image.programs {
        writeln!(
            out,
            "{}:{} ({}), {} instructions",
            program.attach.system,
            program.attach.name,
            kind(program),
            program.instructions
        )?;
        for part in &program.parts {
            writeln!(out, "{}", listing(part))?;
        }
    }
    Ok(())
}

/// What things cost on this host, measured now; where that is not allowed, what they cost elsewhere, which is said.
fn host_costs(schema: &KernelSchema, features: &Features, out: &mut dyn Write) -> anyhow::Result<Costs> {
    let env = Environment {
        features: features.clone(),
        btf: schema.btf(),
        tracefs: schema.tracefs(),
        uuid: [0; 16],
        pins: None,
        memo: "",
        max_bytes: u64::MAX,
    };
    let measured = measure(schema, &env);
    Ok(match measured {
        Ok(costs) => {
            writeln!(
                out,
                "measured on this host, and a quarter added, since caches are colder elsewhere"
            )?;
            costs
        }
        Err(error) => {
            writeln!(out, "not measured on this host ({error:#}), but on another")?;
            Costs::default()
        }
    })
}

fn costs(image: &Image, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "\n{:<38} {:<20} {:>8}", "program", "pack", "ns")?;
    for program in &image.programs {
        let name = format!(
            "{}:{} ({})",
            program.attach.system,
            program.attach.name,
            kind(program)
        );
        // Of several records of one event the dearest.
        let mut prices: BTreeMap<(u16, &Priced), u32> = BTreeMap::new();
        for price in program.parts.iter().flat_map(|part| &part.prices) {
            let dearest = prices.entry((price.pack, &price.of)).or_default();
            *dearest = price.ns.max(*dearest);
        }
        for ((number, of), ns) in prices {
            let pack = image.packs.iter().find(|pack| pack.index == number);
            let pack = pack.map_or("", |pack| &pack.plan.pack);
            let of = match of {
                Priced::Hit => "a hit".to_owned(),
                Priced::Record(event) => format!("a record of {event}"),
            };
            writeln!(out, "{name:<38} {pack:<20} {ns:>8}  {of}")?;
        }
    }
    writeln!(
        out,
        "\na hit: of each hit, up to where nothing is recorded; records come on top, and so do rules that fire"
    )
}
