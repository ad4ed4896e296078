//! The `iris-sidecar` binary: see [`iris_sidecar::cli`].

use std::process::ExitCode;

// Returns memory to the system as responses are evicted, so that the budget holds in RSS too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    iris_sidecar::cli::main()
}
