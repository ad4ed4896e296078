//! Descriptors: how many this process may have open, and how they are shared out.

use tracing::{info, warn};

use crate::config::Config;

/// Held back for all that is neither a client's connection nor one to the upstream: the admin port,
/// Redis, databases, files, and what the runtimes need themselves.
const RESERVE: u64 = 96;

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

/// Connections for which there are no descriptors are not taken at all: what came last would fail
/// otherwise, whoever it was for.
fn fit(config: &mut Config, limit: u64) {
    let redis = config
        .cache
        .redis
        .as_ref()
        .map_or(0, |redis| redis.connections as u64 + 1);
    let pools = 2 + config.origin.replicas.len() as u64;
    let databases = u64::from(config.origin.connections) * pools;
    let available = limit.saturating_sub(RESERVE + redis + databases).max(16);
    let wanted = config.limits.connections as u64;
    let upstream = config.upstream.as_ref();
    let wanted_upstream = upstream.map_or(0, |upstream| upstream.max_connections as u64);
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
        "limits.connections = {wanted} and upstream.max_connections = {wanted_upstream} need more descriptors than there are: so many connections are taken instead; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
    );
    config.limits.connections = clients as usize;
    if let Some(upstream) = &mut config.upstream {
        upstream.max_connections = (to_upstream as usize).max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(limit: u64) -> (usize, usize) {
        let text = "[upstream]\nurl = \"http://a\"\nmax_connections = 500\n[limits]\nconnections = 10000\n[origin]\nconnections = 10\n";
        let mut config = Config::parse("test", text, &|_| None).unwrap();
        fit(&mut config, limit);
        let upstream = config.upstream.unwrap();
        (config.limits.connections, upstream.max_connections)
    }

    #[test]
    fn what_fits_stays_and_what_does_not_is_shared_out() {
        assert_eq!(fitted(1_000_000), (10_000, 500));
        assert_eq!(fitted(10_616), (10_000, 500));
        assert_eq!(fitted(10_615), (9_999, 500));
        assert_eq!(fitted(256), (70, 70));
        assert_eq!(fitted(20), (8, 8));
    }
}
