//! What is packaged against what it speaks of: settings, pages, completions, the unit.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lkst::config::{CONFIG_FILE, Config};

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn parsed(text: &str) -> Config {
    Config::parse(Path::new(CONFIG_FILE), text).unwrap_or_else(|error| panic!("{error}"))
}

/// The settings with all that is commented out in force: a remark has a blank after its `#`, a setting has none.
fn uncommented(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The keys that the reader knows in a table, which it names where one is not known.
fn known_keys(table: &str) -> BTreeSet<String> {
    let error = Config::parse(Path::new(CONFIG_FILE), &format!("{table}\nno_such_key = 1\n")).unwrap_err();
    let (_, known) = error.text.split_once("known here: ").unwrap();
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_settings_are_the_defaults_but_for_the_group() {
    let text = read("lkst.toml");
    let group = Config {
        socket_group: Some("lkst".to_owned()),
        ..Config::default()
    };
    assert_eq!(parsed(&text), group);
    let all = parsed(&uncommented(&text));
    let with_examples = Config {
        metrics_address: all.metrics_address.clone(),
        never_capture: all.never_capture.clone(),
        packs: all.packs.clone(),
        ..group
    };
    assert_eq!(all, with_examples, "a commented setting is not the default");
    assert!(all.metrics_address.is_some() && all.packs.contains_key("io_stall"));
    assert!(!all.never_capture.events.is_empty() && !all.never_capture.fields.is_empty());
    assert_eq!(all.options("io_stall").params.len(), 2);
}

#[test]
fn every_setting_is_shown_and_has_its_place_in_the_page() {
    let settings: toml::Table = uncommented(&read("lkst.toml")).parse().unwrap();
    let page = read("man/lkst.toml.5");
    let shown = |table: &toml::Table| table.keys().cloned().collect::<BTreeSet<_>>();
    let inner = |table: &toml::Table, key: &str| table.get(key).unwrap().as_table().unwrap().clone();
    for (name, table) in [
        ("", settings.clone()),
        ("[never_capture]", inner(&settings, "never_capture")),
        ("[pack.io_stall]", inner(&inner(&settings, "pack"), "io_stall")),
    ] {
        let known = known_keys(name);
        assert_eq!(shown(&table), known, "in table {name:?}");
        for key in known {
            let shapes = [
                format!(".BR {key} "),
                format!(".B {key}\n"),
                format!("[{key}"),
                format!(".{key}]"),
            ];
            let found = shapes.iter().any(|shape| page.contains(shape));
            assert!(found, "{key} is not in the page");
        }
    }
}

#[test]
fn every_subcommand_has_a_page_and_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_lkst-packaging"))
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(made.success());
    let file = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let completions = [
        "completions/lkst.bash",
        "completions/_lkst",
        "completions/lkst.fish",
    ]
    .map(file);
    let mut pages = 1;
    let overview = file("man/lkst.1");
    for command in lkst::cli::definition()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        let name = command.get_name();
        let page = file(&format!("man/lkst-{name}.1"));
        pages += 1;
        for part in [
            ".TH",
            ".SH NAME",
            ".SH SYNOPSIS",
            ".SH \"EXIT STATUS\"",
            ".SH \"SEE ALSO\"",
        ] {
            assert!(page.contains(part), "lkst-{name}(1) has no {part}");
        }
        if let Some(help) = command.get_after_help().map(ToString::to_string)
            && help.starts_with("Examples:")
        {
            assert!(
                page.contains(".SH EXAMPLES\n.nf\nlkst "),
                "lkst-{name}(1) has no examples"
            );
        }
        assert!(
            overview.contains(&format!("lkst\\-{name}")),
            "lkst(1) does not name {name}"
        );
        for text in &completions {
            assert!(text.contains(name), "{name} is not completed");
        }
    }
    assert_eq!(fs::read_dir(dir.path().join("man")).unwrap().count(), pages);
}

/// The highest that `systemd-analyze security` may give, in tenths: 0 is nothing exposed, 100 everything.
const MOST_EXPOSED: &str = "24";

#[test]
fn the_unit_exposes_little() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("lkst.service");
    let required = std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    let judged = Command::new("systemd-analyze")
        .args([
            "security",
            "--offline=true",
            "--no-pager",
            "--threshold",
            MOST_EXPOSED,
        ])
        .arg(&unit)
        .output();
    match judged {
        Ok(judged) => {
            let said = String::from_utf8_lossy(&judged.stdout).into_owned()
                + &String::from_utf8_lossy(&judged.stderr);
            assert!(judged.status.success(), "{said}");
            assert!(said.contains("Overall exposure level"), "{said}");
            assert!(
                !said.contains("Unknown") && !said.contains("Failed to parse"),
                "{said}"
            );
        }
        Err(error) => {
            assert!(!required, "systemd-analyze cannot be run: {error}");
            eprintln!("skipped: systemd-analyze cannot be run: {error}");
        }
    }
}

#[test]
fn the_unit_lets_the_agent_write_where_the_settings_say() {
    let unit = read("lkst.service");
    let config = Config::default();
    let name =
        |folder: &PathBuf, parent: &str| folder.strip_prefix(parent).unwrap().to_str().unwrap().to_owned();
    for line in [
        format!("StateDirectory={}", name(&config.state_dir, "/var/lib")),
        "StateDirectoryMode=0700".to_owned(),
        format!("RuntimeDirectory={}", name(&config.run_dir, "/run")),
        format!("ReadWritePaths={}", config.pin_dir.parent().unwrap().display()),
        "CapabilityBoundingSet=CAP_BPF CAP_PERFMON CAP_DAC_READ_SEARCH".to_owned(),
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    for folder in [&config.rules_dir, &config.state_dir, &config.run_dir] {
        let line = format!("d {} ", folder.display());
        assert!(read("lkst.tmpfiles").contains(&line), "{line}");
    }
    assert!(read("lkst.sysusers").contains("\ng lkst "));
}
