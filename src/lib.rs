//! iris-sidecar: a reverse caching proxy that runs beside an HTTP API and makes it fast without
//! touching it. This page is the map of the house.
//!
//! # The way of a request
//!
//! Two machines that never mix, and a flight between them: one fetch, and those who wait for it.
//!
//! ```text
//!  a client's request (proxy/client)            a fetch, a task of its own (proxy/fetch)
//!
//!  received ── refused                           Requested ── found in Redis
//!     │ framing, Host, one spelling                 │ the fleet is asked, then the origin
//!  Routed                                        Headed: judge_head, a pure function
//!     │ limits, key ── asked about, and back        ├─ confirmed, completed, asked again
//!  Admitted ── refused                              ├─ one client's alone ─┐
//!     ├─ Bypassed ──────────── to the origin        ├─ failed ─────────────┤ told to the leader
//!  Keyed                                         Streaming                │ and to the waiters
//!     │ looked up                                   │ to readers and store │
//!     ├─ Hit, StaleHit ─ delivered                  └─ Complete | Failed ──┘
//!     └─ Miss ─ joins a flight, leads it, or fetches alone ─ delivered
//! ```
//!
//! The list of each machine's steps stands at the top of its folder. A request takes the *plan* in
//! force when it is received (`proxy/plan`: everything that the configuration makes) and keeps it
//! to its end; what outlives plans is the *state* (`proxy/state`). What caching *means* is decided
//! in one place, [`policy`], by pure functions with `now` as a parameter; every decision carries a
//! [`policy::Reason`], and the same codes stand in `Cache-Status`, in metrics and in what `explain`
//! tells, which takes the same steps. [`guide`] has the words, the reasons, four how-tos and the
//! rules for versions; [`operators`] what exactly is promised.
//!
//! # The rooms
//!
//! A room imports only from rooms on floors below its own; `tests/house.rs` holds this.
//!
//! | floor | room | holds |
//! |---|---|---|
//! | 8 | [`cli`], [`process`] | arguments and exit status · the rooms put together, started and drained |
//! | 7 | [`server`], [`admin`], [`load`] | listeners, workers, connection deadlines · metrics, health, purges · `bench` and `load-test` |
//! | 6 | [`reload`], [`proxy`] | a changed configuration comes into force · halls, from the ground: wire, state, plan, parts, fleet, fetch, purging, admission, client |
//! | 5 | [`guard`], [`origin`] | API keys and rate limits · the built-in origin |
//! | 4 | [`store`], [`flight`], [`upstream`], [`database`], [`descriptors`], [`container`], [`access_log`] | memory tier, entry, budget, purge log, second tier (Redis) · coalescing · addresses, pool, breaker · SQL · how many connections there can be · how much memory · a line for each request |
//! | 3 | [`config`], [`metrics`] | TOML → checked types · metric families and their handles |
//! | 2 | [`policy`] | RFC 9110, 9111, 5861, 8246, 9213 and 9875 as pure functions |
//! | 1 | [`mod@http`], [`tls`], [`trace`] | wire vocabulary without policy · whom we trust as a client, and who we are to clients · what follows a request through several systems |
//! | 0 | [`clock`], [`error`], [`give_back`], [`supervisor`] | time as a value · failures, and the one function that makes a response of one · freed memory, given back to the system · what systemd is told |
//!
//! Two traits: [`upstream::Origin`], whatever answers a request behind the cache, and
//! [`store::second::SecondTier`], whatever the fleet shares. Everything else is enums and plain
//! functions.
//!
//! # Who is let in
//!
//! Guard first, look-up second ([`guard`], `proxy/admission`). On a route with `share = "verified"`
//! a caller whose key has a good verdict is answered as any other; one that nobody knows
//! *verifies*: its own request goes to the origin, nothing stored answers it, and what comes of it
//! is the verdict. What it fetched is its own until it is proved that it may be shared
//! ([`guard::units`], `proxy/fetch/prove`): a control was taken, and another key's own answer
//! agreed ([`guard::agreement`]). A revocation is an entry of the purge log, and so is the demotion
//! of a route whose answers were found to differ by key.
//!
//! # TLS
//!
//! [`tls`] speaks by aws-lc-rs. Measured against ring in one run (server's side in memory, ECDSA
//! P-256, one core): 1.08 to 1.19 times the handshakes a second by X25519, with the hybrid
//! X25519MLKEM768, which ring has not, as many as ring has without it; 1.3 times the bytes at 16
//! KiB a record. It makes a small program 2.4 MB larger and takes half a minute more to build on
//! two cores; it needs a C compiler, as mimalloc and SQLite do, and no cmake, and builds for musl
//! and for arm64 with their compilers. (ring is linked as well, for connections to Postgres.)
//!
//! Certificates are part of the configuration: files are read, checked and exchanged with it, so
//! that a wrong one leaves everything as it was. Where clients show certificates no session is
//! resumed: who resumes shows none again.
//!
//! # The image
//!
//! One static binary in an empty image (`docker/Dockerfile`, `docker/static.toml`), by glibc: eight
//! alternating runs of hits of 1 KiB gave medians of 116 thousand a second with musl beside 132
//! with a dynamic glibc (12 % less: its `memcpy`), and of 144 with a static glibc beside 143. Names
//! are looked up in `/etc/hosts` and by DNS, search domains included, which `tests/image.rs` holds.
//! Two builds of one commit gave the same bytes once C code no longer said when it was compiled
//! (`SOURCE_DATE_EPOCH`).
//!
//! # A fleet
//!
//! With Redis, a flight asks the second tier before the origin (`proxy/fleet`): for the response,
//! or for the lease of its fetch, in one round trip; who does not get the lease is told when the
//! fetch is over. What is stored goes there behind the response, and its lease ends with that
//! write. The purge log ([`store::purge`]) is a stream that every instance follows
//! ([`store::second`]); a stored response is judged by the positions of the log, so that no order
//! in which fills and purges arrive can bring back what was purged.
//!
//! # Threads
//!
//! One worker a core, each a current-thread runtime with a listener of its own on the same address;
//! they share the store, the flights and the upstream's pool. One more thread, the background,
//! runs the admin port, the database and everything of Redis.
//!
//! # What a hit costs
//!
//! No lock is held across an await, nothing waits, and nothing is looked up by label: the key is
//! written on the stack, the memory tier gives a counted reference, the head's fields are unpacked
//! from one block whose values are shared, and the body is the stored bytes themselves.
//! `tests/allocations.rs` states the number of allocations.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod container;
pub mod database;
pub mod descriptors;
pub mod error;
pub mod flight;
#[cfg(test)]
mod fuzz;
pub mod give_back;
pub mod guard;
#[doc = include_str!("guide.md")]
pub mod guide {}
#[doc = include_str!("operators.md")]
pub mod operators {}
pub mod http;
pub mod load;
pub mod metrics;
pub mod origin;
pub mod policy;
pub mod process;
pub mod proxy;
pub mod reload;
pub mod server;
pub mod store;
pub mod supervisor;
pub mod tls;
pub mod trace;
pub mod upstream;
