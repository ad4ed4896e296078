//! The `iris-sidecar` binary: see [`iris_sidecar::cli`].

use std::process::ExitCode;

// Version 2: in version 3 what is freed between blocks of 64 to 512 KiB stays. Without huge pages
// (`no_thp`): of each buffer of a connection, what it never uses would be resident.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    iris_sidecar::cli::main(give_back)
}

/// Gives what this thread has freed back to the system. The allocator would only do that when
/// something is allocated again, and so for an idle process never; doing it for each block as it is
/// freed costs a fault for each of its pages when it is used again.
#[allow(unsafe_code, reason = "the allocator's own function is one of C")]
fn give_back() {
    // SAFETY: it may be called at any time.
    unsafe { libmimalloc_sys::mi_collect(true) };
}
