//! The command `lkst` as the tests start it: a package's tests can name only programs of their own package.

use std::process::ExitCode;

fn main() -> ExitCode {
    lkst::cli::main()
}
