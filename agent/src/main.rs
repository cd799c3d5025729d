//! The command `lkst`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lkst::cli::main()
}
