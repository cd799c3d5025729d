//! The command `lkst`.
fn main() {}
