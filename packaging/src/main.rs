//! What a package holds beside the command: the command line's definition in, man pages and completions out.
//!
//! ```text
//! lkst-packaging DIR
//! DIR/man/lkst.1, lkst-run.1 …         a page for lkst and for each subcommand
//! DIR/completions/lkst.bash, _lkst, lkst.fish
//! ```
//!
//! A crate of its own, so that the command itself carries none of it. Pages that no definition can give are in `man/`.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(dir), None) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: lkst-packaging DIR");
    };
    let dir = Path::new(&dir);
    man_pages(&dir.join("man")).context("cannot write the man pages")?;
    completions(&dir.join("completions")).context("cannot write the completions")
}

fn man_pages(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let mut all = lkst::cli::definition().disable_help_subcommand(true);
    all.build();
    let name = all.get_name().to_owned();
    let pages: Vec<String> = shown(&all).map(|command| page_name(&name, command)).collect();
    fs::write(dir.join(format!("{name}.1")), page(&all, &name, &pages)?)?;
    for (command, page_name) in shown(&all).zip(&pages) {
        let related = [name.clone()];
        fs::write(
            dir.join(format!("{page_name}.1")),
            page(command, page_name, &related)?,
        )?;
    }
    Ok(())
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set())
}

fn page_name(of: &str, command: &Command) -> String {
    format!("{of}-{}", command.get_name())
}

/// A page; `related` are other pages of section 1.
fn page(command: &Command, name: &str, related: &[String]) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone())
        .title(name)
        .source(format!("lkst {version}"))
        .manual("lkst");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut out)?;
    }
    if shown(command).next().is_some() {
        man.render_subcommands_section(&mut out)?;
    }
    out.extend_from_slice(after(command).as_bytes());
    out.extend_from_slice(ENDS.as_bytes());
    out.extend_from_slice(see_also(related).as_bytes());
    Ok(out)
}

/// What follows the options in the command's help, with its lines kept: they are examples.
fn after(command: &Command) -> String {
    let help = command
        .get_after_long_help()
        .or_else(|| command.get_after_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    match help.strip_prefix("Examples:\n") {
        None if help.is_empty() => String::new(),
        None => format!(".SH NOTES\n{}\n", escaped(&help)),
        Some(examples) => {
            let lines = examples
                .lines()
                .map(|line| line.strip_prefix("  ").unwrap_or(line));
            let lines: Vec<String> = lines.map(escaped).collect();
            format!(".SH EXAMPLES\n.nf\n{}\n.fi\n", lines.join("\n"))
        }
    }
}

/// The same for all of them, as `cli.rs` has it.
const ENDS: &str = ".SH \"EXIT STATUS\"
0: done. 1: the input is wrong. 2: the usage is wrong.
3: this kernel or these privileges do not allow it, and it says which one is missing.
";

fn see_also(related: &[String]) -> String {
    let mut text = String::from(".SH \"SEE ALSO\"\n");
    for name in related {
        // Writing to a text cannot fail.
        let _ = writeln!(text, ".BR {} (1),", escaped(name));
    }
    text.push_str(".BR lkst.toml (5),\n.BR lkst\\-rules (7)\n");
    text
}

/// A line as roff text: nothing in it is a request or an escape.
fn escaped(line: &str) -> String {
    let line = line
        .replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('\'', "\\(aq");
    match line.starts_with('.') {
        true => format!("\\&{line}"),
        false => line,
    }
}

fn completions(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut lkst::cli::definition(), "lkst", OsString::from(dir))?;
    }
    Ok(())
}
