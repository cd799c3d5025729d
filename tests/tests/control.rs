//! What docs/control.md tells people to type, typed: each of its examples asks a running agent, in the order in which
//! they stand there, and is answered as the page says.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use lkst_tests::agents::Bed;
use lkst_tests::lab::Lab;
use serde_json::Value;

const RULES: &str = "
    buffer incident { size = 64KiB }
    set always { sched:sched_process_exec }
    set detail { sched:sched_process_exit }
    start with always
    rule leave { when sched:sched_process_exec with filename == \"/no/such\" then enable detail switch buffer incident notify \"left\" }
";

/// The page's examples.
fn examples() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/control.md");
    let text = fs::read_to_string(page).unwrap();
    let lines = text.lines().filter(|line| line.starts_with("curl "));
    lines.map(str::to_owned).collect()
}

/// Types it, for the agent of this bed: the status code, and what was answered.
fn typed(bed: &Bed, command: &str) -> (String, String) {
    let path = |name: &str| bed.path("run").join(name).display().to_string();
    let command = command
        .replace("/run/lkst/control.sock", &path("control.sock"))
        .replace(
            "http://127.0.0.1:9464/",
            &format!("--unix-socket {} http://lkst/", path("metrics.sock")),
        )
        .replace(
            "curl ",
            "curl --silent --show-error --write-out '\\n%{http_code}' ",
        );
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new("sh").args(["-c", &command]).output().unwrap();
    let (said, errors) = (
        String::from_utf8(stdout).unwrap(),
        String::from_utf8_lossy(&stderr),
    );
    assert!(status.success(), "{command}: {errors}");
    let (answer, code) = said.rsplit_once('\n').unwrap();
    (code.to_owned(), answer.to_owned())
}

fn is_installed() -> bool {
    let installed = Command::new("curl").arg("--version").output().is_ok();
    if !installed {
        println!("skipped: curl is not installed");
        let required = std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1");
        assert!(!required, "LKST_REQUIRE_KERNEL=1, and curl is not installed");
    }
    installed
}

#[test]
fn every_example_of_the_page_is_answered() {
    let Some(_lab) = Lab::open("examples of the control socket").unwrap() else {
        return;
    };
    if !is_installed() {
        return;
    }
    let mut bed = Bed::new(env!("CARGO_BIN_EXE_lkst-under-test")).unwrap();
    let metrics = bed.path("run/metrics.sock");
    let config = bed.path("lkst.toml");
    fs::write(&config, format!("metrics_address = \"{}\"\n", metrics.display())).unwrap();
    bed.put("io.lkst", RULES).unwrap();
    bed.start().unwrap();
    bed.pack_until("io", "is in force", |pack| pack.hash.is_some())
        .unwrap();
    let examples = examples();
    assert!(examples.len() >= 8, "{examples:?}");
    for example in &examples {
        let (code, answer) = typed(&bed, example);
        assert_eq!(code, "200", "{example}: {answer}");
        if example.ends_with("/metrics") {
            assert!(answer.contains("\nlkst_packs 1\n"), "{answer}");
            continue;
        }
        let answer: Value = serde_json::from_str(&answer).unwrap();
        if example.ends_with("/status") {
            assert_eq!(answer["packs"][0]["name"], "io", "{answer}");
        } else {
            assert!(answer["message"].is_string(), "{example}: {answer}");
            assert!(answer["traces"].is_array(), "{example}: {answer}");
        }
        let pack = bed.pack("io").unwrap().unwrap();
        let is = |set: &str| pack.sets.iter().any(|known| known.name == set && known.enabled);
        let is_in = |buffer: &str| {
            pack.buffers
                .iter()
                .any(|known| known.name == buffer && known.current)
        };
        match example.rsplit_once('/').unwrap().1 {
            "save" => assert_eq!(answer["traces"].as_array().unwrap().len(), 1, "{answer}"),
            "switch" => assert!(is_in("incident"), "{pack:?}"),
            "enable" => assert!(is("detail"), "{pack:?}"),
            "disable" => assert!(!is("detail"), "{pack:?}"),
            _ => {}
        }
    }

    let control = "curl --unix-socket /run/lkst/control.sock ";
    for (rest, code, kind) in [
        ("http://lkst/v2/status", "404", "not-found"),
        ("http://lkst/v1/no-such", "404", "not-found"),
        (
            "-d '{\"pack\":\"io\",\"set\":\"no\"}' http://lkst/v1/enable",
            "404",
            "not-found",
        ),
        ("-d '{\"pack\":\"no\"}' http://lkst/v1/save", "404", "not-found"),
        ("http://lkst/v1/save", "405", "bad-request"),
        ("-d '[]' http://lkst/v1/save", "400", "bad-request"),
        ("-d 'x' http://lkst/v1/save", "400", "bad-request"),
        ("-d '{\"other\":1}' http://lkst/v1/save", "400", "bad-request"),
        (
            "-d '{\"pack\":\"io\"}' http://lkst/v1/reload",
            "400",
            "bad-request",
        ),
        (
            "-d \"$(head -c 100000 /dev/zero | tr '\\0' ' ')\" http://lkst/v1/save",
            "413",
            "bad-request",
        ),
    ] {
        let (is, answer) = typed(&bed, &format!("{control}{rest}"));
        assert_eq!(is, code, "{rest}: {answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["error"]["kind"], kind, "{rest}: {answer}");
        assert!(answer["error"]["message"].is_string(), "{rest}: {answer}");
    }

    // Nothing is loaded.
    fs::remove_dir_all(bed.path("bpf/lkst")).unwrap();
    bed.until("word of the kill switch", |bed| {
        let status = bed.status().unwrap().unwrap_or_default();
        !status.troubles.is_empty()
    })
    .unwrap();
    let (code, answer) = typed(&bed, &format!("{control}-d '{{}}' http://lkst/v1/save"));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(
        (&*code, &answer["error"]["kind"]),
        ("409", &"conflict".into()),
        "{answer}"
    );
    bed.end().unwrap();
    bed.stop_tracing().unwrap();
}
