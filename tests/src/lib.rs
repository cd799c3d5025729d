//! Shared helpers of the test suites.

pub mod agents;
pub mod babeltrace;
pub mod costly;
pub mod ftrace;
pub mod lab;
pub mod live;
pub mod namespace;
pub mod numbered;
pub mod objects;
pub mod ring;
pub mod sandbox;
pub mod shared;
pub mod soak;
pub mod streamed;
pub mod timers;
pub mod view;
pub mod worker;

use lkst::kernel::schema::KernelSchema;

/// The schema of this kernel, or `None`, said aloud, where it cannot be read; with `LKST_REQUIRE_KERNEL=1` that is an
/// error.
///
/// # Errors
/// Why there is no schema, where one is required.
pub fn kernel_schema(test: &str) -> anyhow::Result<Option<KernelSchema>> {
    let required = std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1");
    match KernelSchema::of_this_kernel() {
        Ok(schema) if schema.btf().is_some() => Ok(Some(schema)),
        Ok(_) if required => anyhow::bail!("this kernel has no BTF"),
        Err(error) if required => Err(error.into()),
        Ok(_) => {
            eprintln!("{test}: skipped: this kernel has no BTF");
            Ok(None)
        }
        Err(error) => {
            eprintln!("{test}: skipped: {error}");
            Ok(None)
        }
    }
}

/// True where programs can be loaded. Where they cannot that is said aloud; with `LKST_REQUIRE_KERNEL=1` it is an error.
///
/// # Errors
/// What is missing, where it is required.
pub fn kernel_takes_programs(test: &str) -> anyhow::Result<bool> {
    let Err(missing) = lkst::kernel::features::probe() else {
        return Ok(true);
    };
    let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
    if std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1") {
        anyhow::bail!("{}", missing.join("; "));
    }
    eprintln!("{test}: skipped: {}", missing.join("; "));
    Ok(false)
}

/// Whether `bpftool` is there, said aloud where not; with `LKST_REQUIRE_KERNEL=1` that is an error.
///
/// # Errors
/// Where it is required and not there.
pub fn bpftool(test: &str) -> anyhow::Result<bool> {
    let there = std::process::Command::new("bpftool")
        .arg("version")
        .output()
        .is_ok_and(|o| o.status.success());
    if !there && std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1") {
        anyhow::bail!("no `bpftool`: install Debian's package of that name");
    }
    if !there {
        eprintln!("{test}: skipped: no `bpftool`");
    }
    Ok(there)
}
