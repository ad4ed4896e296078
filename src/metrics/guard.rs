//! Who was let in: verdicts on keys, rate limits, and routes that may not be shared.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use strum::{IntoStaticStr, VariantArray};

use super::labels::{CacheLabels, LimitLabels, VerdictLabels, touch};

/// What a source said of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum VerdictOutcome {
    Good,
    Bad,
    /// Neither: it gave no answer.
    Failed,
    /// It refused a good key.
    Outage,
}

/// How the answers to two keys compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Compared {
    Same,
    /// By key, and not by time.
    Differs,
    /// One failed, or they change from answer to answer.
    Unclear,
}

/// What the control of a unit came to: the same request with a random key, and with none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Control {
    /// Both were refused.
    Held,
    /// One of them was not: what is answered there says nothing of keys.
    Failed,
    /// The origin gave no answer about it.
    Unanswered,
    /// It was not even asked.
    Unsent,
}

/// Who says whether a key is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum VerdictBy {
    Origin,
    Url,
    Table,
    Fleet,
}

/// Whom a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum LimitKind {
    Ip,
    ApiKey,
}

#[derive(Debug, Default)]
pub struct GuardMetrics {
    auth: [Counter; 2],
    rate_limit: [Counter; 2],
    /// By kind of limit: let through, and refused.
    requests: Vec<(LimitKind, [Counter; 2])>,
    verdicts: Family<VerdictLabels, Counter>,
    comparisons: Family<VerdictLabels, Counter>,
    controls: Family<VerdictLabels, Counter>,
    good: Gauge,
    bad: Gauge,
}

impl GuardMetrics {
    /// `caches` is the family of look-ups by cache.
    pub(super) fn register(
        &mut self,
        registry: &mut Registry,
        caches: &Family<CacheLabels, Counter>,
    ) {
        let pair = |cache| {
            ["hit", "miss"].map(|result| caches.get_or_create_owned(&CacheLabels { cache, result }))
        };
        (self.auth, self.rate_limit) = (pair("auth"), pair("rateLimit"));
        let requests = Family::<LimitLabels, Counter>::default();
        registry.register(
            "rate_limit_requests",
            "Requests by the kind of limit that judged them",
            requests.clone(),
        );
        let of_kind = |kind: &LimitKind| {
            let key = (*kind).into();
            let counters = ["allowed", "blocked"]
                .map(|result| requests.get_or_create_owned(&LimitLabels { key, result }));
            (*kind, counters)
        };
        self.requests = LimitKind::VARIANTS.iter().map(of_kind).collect();
        registry.register(
            "auth_verdicts",
            "Answers about keys, by who gave them and what they said",
            self.verdicts.clone(),
        );
        for source in VerdictBy::VARIANTS {
            for outcome in VerdictOutcome::VARIANTS {
                let (source, outcome) = ((*source).into(), (*outcome).into());
                touch(&self.verdicts, &VerdictLabels { source, outcome });
            }
        }
        registry.register(
            "auth_comparisons",
            "Answers to two keys, by how they compared",
            self.comparisons.clone(),
        );
        for outcome in Compared::VARIANTS {
            let (source, outcome) = (VerdictBy::Origin.into(), (*outcome).into());
            touch(&self.comparisons, &VerdictLabels { source, outcome });
        }
        registry.register(
            "auth_controls",
            "Controls (a random key, and none, where keys are learned), by what they came to",
            self.controls.clone(),
        );
        for outcome in Control::VARIANTS {
            let (source, outcome) = (VerdictBy::Origin.into(), (*outcome).into());
            touch(&self.controls, &VerdictLabels { source, outcome });
        }
        registry.register(
            "auth_good_keys",
            "Good verdicts that are remembered, expired ones included",
            self.good.clone(),
        );
        registry.register(
            "auth_bad_keys",
            "Bad verdicts that are remembered, expired ones included",
            self.bad.clone(),
        );
    }

    pub fn verdict(&self, source: VerdictBy, outcome: VerdictOutcome) {
        let (source, outcome) = (source.into(), outcome.into());
        self.verdicts
            .get_or_create(&VerdictLabels { source, outcome })
            .inc();
    }

    /// Whether a caller's standing was known from memory.
    pub fn known(&self, is_known: bool) {
        self.auth[usize::from(!is_known)].inc();
    }

    /// One request counted by one kind of limit: without asking Redis, and let through.
    pub fn counted(&self, kind: LimitKind, is_at_hand: bool, is_allowed: bool) {
        self.rate_limit[usize::from(!is_at_hand)].inc();
        let found = self.requests.iter().find(|(known, _)| *known == kind);
        if let Some((_, counters)) = found {
            counters[usize::from(!is_allowed)].inc();
        }
    }

    pub fn compared(&self, compared: Compared) {
        let (source, outcome) = (VerdictBy::Origin.into(), compared.into());
        self.comparisons
            .get_or_create(&VerdictLabels { source, outcome })
            .inc();
    }

    pub fn controlled(&self, control: Control) {
        let (source, outcome) = (VerdictBy::Origin.into(), control.into());
        self.controls
            .get_or_create(&VerdictLabels { source, outcome })
            .inc();
    }

    pub(super) fn show(&self, (good, bad): (u64, u64)) {
        self.good.set(good as i64);
        self.bad.set(bad as i64);
    }

    /// Requests that limits let through, and refused.
    pub(super) fn totals(&self) -> (u64, u64) {
        let sum = |at: usize| self.requests.iter().map(|(_, pair)| pair[at].get()).sum();
        (sum(0), sum(1))
    }
}
