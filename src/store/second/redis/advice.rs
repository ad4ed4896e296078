//! What the settings of a Redis keep the fleet from promising, as far as it tells them.

/// What is asked of `CONFIG GET`.
pub(super) const SETTINGS: [&str; 3] = ["save", "appendonly", "min-replicas-to-write"];

pub(super) const NO_INFO: &str = "it does not let this user run INFO: that it has come back with \
    an older state is not noticed where all instances start anew; allow +info";

/// What to set, and why, by what `INFO` and `CONFIG GET` say.
pub(super) fn advice(info: &str, settings: &[(&str, String)]) -> Vec<String> {
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.trim_end().strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
    };
    let number = |name| field(name).parse::<u64>().unwrap_or(0);
    let setting = |name: &str| {
        let found = settings.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| value.as_str())
    };
    let mut advice = Vec::new();
    let has_snapshots = setting("save").is_some_and(|save| !save.trim().is_empty());
    let has_aof = field("aof_enabled") == "1" || setting("appendonly") == Some("yes");
    if has_snapshots && !has_aof {
        advice.push(
            "it keeps snapshots and no append-only file: after a crash it knows revoked \
            keys and windows of rate limits as they were then, and nothing that it stores is \
            trusted; set appendonly yes, or save \"\" for no persistence at all"
                .to_owned(),
        );
    }
    let replicas = number("connected_slaves");
    if replicas > 0 && setting("min-replicas-to-write").is_some_and(|least| least == "0") {
        advice.push(
            "it has replicas and takes purges without them: a master that was replaced \
            goes on for a while, and what is told to it is lost; set min-replicas-to-write 1"
                .to_owned(),
        );
    }
    if number("maxmemory") > 0 && field("maxmemory_policy") == "noeviction" {
        advice.push(
            "with maxmemory-policy noeviction a full memory takes no purges: they stay \
            pending; set allkeys-lru"
                .to_owned(),
        );
    }
    advice
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_voids_a_promise_is_told_with_what_to_set() {
        let told = |info: &str, settings: &[(&str, &str)]| {
            let settings: Vec<_> = settings
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect();
            advice(info, &settings)
        };
        let snapshots = [("save", "3600 1"), ("appendonly", "no")];
        assert!(told("aof_enabled:0\r\n", &snapshots)[0].contains("appendonly yes"));
        assert!(told("aof_enabled:1\r\n", &snapshots).is_empty());
        assert!(told("aof_enabled:0\r\n", &[("save", "")]).is_empty());
        let alone = [("min-replicas-to-write", "0")];
        let found = told("connected_slaves:2\r\n", &alone);
        assert!(found[0].contains("min-replicas-to-write 1"));
        assert!(told("connected_slaves:0\r\n", &alone).is_empty());
        assert!(told("connected_slaves:1\r\n", &[("min-replicas-to-write", "1")]).is_empty());
        let full = "maxmemory:1000\r\nmaxmemory_policy:noeviction\r\n";
        assert!(told(full, &[])[0].contains("allkeys-lru"));
        // What it does not tell is not warned of.
        assert!(told("", &[]).is_empty());
    }
}
