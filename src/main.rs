//! The `kvlens` program: parses the command line, runs one role, turns its outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvlens::cli::main()
}
