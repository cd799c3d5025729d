use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use super::*;

fn parse(text: &str) -> Config {
    Config::parse(Path::new("/etc/lkst/lkst.toml"), text).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(text: &str) -> ConfigError {
    match Config::parse(Path::new("/etc/lkst/lkst.toml"), text) {
        Err(error) => error,
        Ok(config) => panic!("{text:?} was taken: {config:?}"),
    }
}

#[test]
fn everything_can_be_set() {
    let config = parse(
        r#"
rules_dir = "/srv/rules"
state_dir = "/srv/state"
run_dir = "/srv/run"
pin_dir = "/sys/fs/bpf/other"
max_memory = "1GiB"
max_incidents_size = "10GiB"
max_incidents_size_per_pack = "512MiB"
max_incident_age = "48h"
stream_rotate_size = "64MiB"
stream_rotate_age = "90s"
owner = "deploy"
socket_group = 998
metrics_address = "[::1]:9464"

[never_capture]
events = ["syscalls:sys_enter_read", "net:*"]
fields = ["filename", "sched:sched_switch.prev_comm"]

[pack.io_stall]
mode = "observe"
[pack.io_stall.params]
slow = "100ms"
depth = 3
negative = -3
name = '"nginx"'
on = true
"#,
    );
    assert_eq!(config.max_memory, Bytes(1 << 30));
    assert_eq!(config.max_incidents_size_per_pack, Bytes(512 << 20));
    assert_eq!(config.max_incident_age, Age(Duration::from_secs(48 * 3600)));
    assert_eq!(
        config.rotation(),
        Rotation {
            size_bytes: 64 << 20,
            age: Duration::from_secs(90)
        }
    );
    assert_eq!(config.owner, "deploy");
    assert_eq!(config.socket_group.as_deref(), Some("998"));
    let address: SocketAddr = "[::1]:9464".parse().unwrap();
    assert_eq!(config.metrics_address, Some(MetricsAddress::Tcp(address)));
    assert!(config.never_capture.forbids_event("net", "netif_rx"));
    assert_eq!(config.mode("io_stall"), PackMode::Observe);
    assert_eq!(config.mode("other"), PackMode::Active);
    let params = config.options("io_stall").params;
    let expected = [
        ("depth", "3"),
        ("name", "\"nginx\""),
        ("negative", "-3"),
        ("on", "true"),
        ("slow", "100ms"),
    ];
    let params: Vec<_> = params.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(params, expected);
    assert!(config.options("other").params.is_empty());
    let flags = FolderFlags {
        rules: Some("/tmp/rules".into()),
        ..FolderFlags::default()
    };
    assert_eq!(
        config.folders(flags),
        Folders {
            rules: "/tmp/rules".into(),
            state: "/srv/state".into(),
            run: "/srv/run".into(),
            pin: "/sys/fs/bpf/other".into(),
        }
    );
}

#[test]
fn nothing_needs_to_be_set() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lkst.toml");
    let config = Config::read(&path, Trust::Owner(0)).unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(parse(""), config);
    assert_eq!(config.max_memory, Bytes(256 << 20));
    assert_eq!(
        (config.metrics_address, config.socket_group),
        (None, None),
        "nothing is served and nobody let in by itself"
    );
}

#[test]
fn a_slip_is_shown_where_it_is_with_what_was_meant() {
    let error = refused("max_memory = \"1GiB\"\nrule_dir = \"/etc/rules\"\n");
    assert_eq!(error.place, Some((2, 1)));
    let start = "/etc/lkst/lkst.toml:2:1: unknown key `rule_dir`
  |
2 | rule_dir = \"/etc/rules\"
  | ^^^^^^^^
  = help: did you mean `rules_dir`?
  = help: known here: `rules_dir`, `state_dir`,";
    assert!(error.text.starts_with(start), "{error}");

    let error = refused("max_memory = \"256MB\"\n");
    let whole = "/etc/lkst/lkst.toml:1:14: `256MB` is not a size
  |
1 | max_memory = \"256MB\"
  |              ^^^^^^^
  = help: write `256MiB`: a size is one whole number and `KiB`, `MiB` or `GiB`";
    assert_eq!(error.text, whole);
}

#[test]
fn every_wrong_value_says_how_to_write_it() {
    for (text, place, parts) in [
        ("max_memory = 256", (1, 14), ["integer `256`", "256MiB"]),
        ("max_memory = \"0KiB\"", (1, 14), ["not a size", "256MiB"]),
        ("max_memory = \"10s\"", (1, 14), ["not a size", "256MiB"]),
        (
            "max_incident_age = \"2d\"",
            (1, 20),
            ["not a duration", "write `48h`"],
        ),
        (
            "metrics_address = \"0.0.0.0:80\"",
            (1, 19),
            ["other machines", "127.0.0.1:PORT"],
        ),
        (
            "metrics_address = \"localhost:80\"",
            (1, 19),
            ["not an address", "127.0.0.1:PORT"],
        ),
        (
            "metrics_address = \"127.0.0.1:0\"",
            (1, 19),
            ["not an address", "[::1]:PORT"],
        ),
        (
            "rules_dir = \"rules.d\"",
            (1, 13),
            ["not an absolute path", "begin with `/`"],
        ),
        ("owner = \"\"", (1, 9), ["invalid value", "account"]),
        (
            "[pack.a]\nmode = \"observer\"",
            (2, 8),
            ["`observer` is not known here", "did you mean `observe`?"],
        ),
        (
            "[pack.a]\nmod = \"observe\"",
            (2, 1),
            ["unknown key `mod`", "`mode`"],
        ),
        (
            "[pack.10-a]\nmode = \"observe\"",
            (1, 7),
            ["is the pack `a`", "write `a`"],
        ),
        (
            "[pack.a.params]\nslow = \"1.5s\"",
            (2, 8),
            ["not an expression", "1500ms"],
        ),
        ("[pack.a.params]\nslow = 1.5", (2, 8), ["float", "an expression"]),
        (
            "[never_capture]\nevents = [\"read\"]",
            (2, 11),
            ["not an event", "syscalls:sys_enter_read"],
        ),
        (
            "[never_capture]\nfields = [\"a:b\"]",
            (2, 11),
            ["not a field", "sched:sched_switch.prev_comm"],
        ),
        (
            "[never_capture]\nfield = []",
            (2, 1),
            ["unknown key `field`", "did you mean `fields`?"],
        ),
    ] {
        let error = refused(text);
        assert_eq!(error.place, Some(place), "{error}");
        for part in parts {
            assert!(error.text.contains(part), "{part:?} is not in:\n{error}");
        }
    }
}

#[test]
fn broken_toml_is_shown_and_never_reaches_a_terminal_raw() {
    let error = refused("owner = \"\u{1b}[31m\"\n");
    assert!(!error.text.contains('\u{1b}'), "{error}");
    for text in [
        "owner = ",
        "owner = \"root\nx",
        "[",
        "owner = \"a\"\nowner = \"b\"",
        "é\u{301} = \"\t",
        "\u{feff}x",
    ] {
        let error = refused(text);
        assert!(error.text.contains("lkst.toml"), "{error}");
    }
}

#[test]
fn a_metrics_socket_is_a_path() {
    let config = parse("metrics_address = \"/run/lkst/metrics.sock\"");
    assert_eq!(
        config.metrics_address,
        Some(MetricsAddress::Unix("/run/lkst/metrics.sock".into()))
    );
}

#[test]
fn a_configuration_that_others_may_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lkst.toml");
    fs::write(&path, "owner = \"root\"").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let us = Trust::Owner(rustix::process::geteuid().as_raw());
    let error = Config::read(&path, us).err().map(|e| e.text).unwrap_or_default();
    assert!(error.contains("chmod go-w"), "{error}");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(Config::read(&path, us), Ok(Config::default()));
    assert!(Config::read(dir.path(), us).is_err());
}
