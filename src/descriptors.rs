//! Descriptors: how many this process may have open, and how they are shared out.

use tracing::{info, warn};

use crate::config::{Config, VerdictSource};

/// Held back for what is counted nowhere else: files, name servers, clients that are refused, and
/// what the background needs itself.
const RESERVE: u64 = 48;

/// Of a worker: its listener, and what its runtime waits with.
const OF_A_WORKER: u64 = 4;

/// Raises the soft limit to the hard one, and fits the connections of `config` into it.
pub fn prepare(config: &mut Config) {
    match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(limit) => {
            info!(limit, "descriptors (RLIMIT_NOFILE)");
            fit(config, limit);
        }
        Err(error) => warn!(%error, "the limit of descriptors could not be raised"),
    }
}

/// Fits the connections of another `config` into the limit as it is.
pub fn fit_again(config: &mut Config) {
    if let Ok((limit, _)) = rlimit::Resource::NOFILE.get() {
        fit(config, limit);
    }
}

/// Connections for which there are no descriptors are not taken at all: what came last would fail
/// otherwise, whoever it was for.
fn fit(config: &mut Config, limit: u64) {
    let redis = config
        .cache
        .redis
        .as_ref()
        .map_or(0, |redis| redis.connections as u64 + 2);
    let pools = 2 + config.origin.replicas.len() as u64;
    let uses_database = config.upstream.is_none() || config.auth.source == VerdictSource::Table;
    let databases = u64::from(uses_database) * u64::from(config.origin.connections) * pools;
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = OF_A_WORKER * config.listen.workers.unwrap_or_else(cores) as u64;
    let admin = config.admin.connections as u64;
    let own = RESERVE + workers + admin + redis + databases;
    let available = limit.saturating_sub(own).max(16);
    let wanted = config.limits.connections as u64;
    let named = config.upstreams.iter().map(|(_, upstream)| upstream);
    let upstreams = config.upstream.iter().chain(named);
    let wanted_upstream: u64 = upstreams
        .map(|upstream| upstream.max_connections as u64)
        .sum();
    if wanted.saturating_add(wanted_upstream) <= available {
        return;
    }
    // A client that is not a hit needs one of each kind.
    let to_upstream = wanted_upstream.min(available / 2);
    let clients = wanted.min(available - to_upstream);
    warn!(
        limit,
        clients,
        to_upstream,
        "limits.connections = {wanted} and upstream.max_connections = {wanted_upstream} need more \
            descriptors than there are: so many connections are taken instead; raise the hard \
            limit (ulimit -Hn, LimitNOFILE=)"
    );
    config.limits.connections = clients as usize;
    // Each of several gives up its part.
    let named = config.upstreams.iter_mut().map(|(_, upstream)| upstream);
    for upstream in config.upstream.iter_mut().chain(named) {
        let part = upstream.max_connections as u64 * to_upstream / wanted_upstream.max(1);
        upstream.max_connections = (part as usize).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(limit: u64) -> (usize, usize) {
        let text = "[listen]\nworkers = 2\n[upstream]\nurl = \"http://a\"\nmax_connections = \
            500\n[limits]\nconnections = 10000\n[origin]\nconnections = 10\n";
        let mut config = Config::parse("test", text, &|_| None).unwrap();
        fit(&mut config, limit);
        let upstream = config.upstream.unwrap();
        (config.limits.connections, upstream.max_connections)
    }

    #[test]
    fn what_fits_stays_and_what_does_not_is_shared_out() {
        assert_eq!(fitted(1_000_000), (10_000, 500));
        assert_eq!(fitted(10_620), (10_000, 500));
        assert_eq!(fitted(10_619), (9_999, 500));
        assert_eq!(fitted(256), (68, 68));
        assert_eq!(fitted(20), (8, 8));
    }
}
