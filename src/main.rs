//! The `iris-sidecar` binary: see [`iris_sidecar::cli`].

use std::ffi::c_int;
use std::process::ExitCode;

// Without huge pages (`no_thp`): of each buffer of a connection, what it never uses would be resident.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of `mimalloc.h`, for which the bindings have no name: milliseconds.
const PURGE_DELAY: c_int = 15;

fn main() -> ExitCode {
    give_back_at_once();
    iris_sidecar::cli::main()
}

/// What is freed goes back to the system at once, so that the budget holds in RSS too. After a delay it
/// would only go when something is allocated again, and by an idle process never.
#[allow(unsafe_code, reason = "the allocator's options are a C function")]
fn give_back_at_once() {
    // SAFETY: it sets a number, before there is another thread.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) };
}
