//! What must be proved of a unit before a verdict or an answer there is for more than its own key:
//! the guard's side of [`units`](super::units).

use std::time::Duration;

use crate::config::OnDifference;

use super::caller::Caller;
use super::group::Group;
use super::source::Question;
use super::units::{Control, MemberId, Membership, Unit, Units};
use super::{Guard, Standing};

/// Between two looks at whether another instance has taken a control.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Guard {
    /// Whether one more control or comparison may begin now, of so many a second; it counts.
    pub fn begins_proof(&self) -> bool {
        let (per_second, now) = (self.settings.compare_per_second, self.state.clock.now());
        self.state.proofs.begins(per_second, now)
    }

    /// How often units need a control; `None` where they need none, since verdicts do not come from
    /// answers there.
    pub fn control_every(&self) -> Option<Duration> {
        self.settings.control.filter(|_| self.learns_from_origin())
    }

    /// Whether two keys' answers must agree before one is shared.
    pub fn needs_agreement(&self) -> bool {
        self.settings.on_difference == OnDifference::Demote
    }

    /// Whether anything must be proved of a unit.
    pub fn needs_proof(&self) -> bool {
        self.needs_agreement() || self.control_every().is_some()
    }

    pub fn units(&self) -> &Units {
        &self.state.units
    }

    /// Whether a 2xx in a unit says something of its key.
    pub fn is_taught(&self, unit: Option<&Unit>) -> bool {
        let now = self.state.clock.now();
        self.control_every().is_none() || unit.is_some_and(|unit| unit.is_controlled(now))
    }

    /// Whose answers may be given to each other, by the unit of which a control is taken and that
    /// in which keys agree; `None` where nobody's may.
    pub fn group(&self, unit: Option<&Unit>, agreeing: Option<&Unit>) -> Option<Group> {
        if !self.is_taught(unit) {
            return None;
        }
        if !self.needs_agreement() {
            return Some(Group::ALL);
        }
        let group = agreeing?.group(self.state.clock.now())?;
        // Found to differ, here or elsewhere.
        (!self.state.purges.is_revoked(&group.digest())).then_some(group)
    }

    /// Whether a caller is one of a group in the unit that is written so.
    pub fn is_member(&self, caller: &Caller, group: Group, unit: &[u8]) -> bool {
        let membership = || {
            let member = MemberId::of(caller, unit);
            let now = self.state.clock.now();
            self.state.units.membership(&member, now)
        };
        group == Group::ALL || membership() == Some(Membership::Of(group))
    }

    /// Whether a caller is good for its own answers, or for those of a group.
    pub fn is_good(&self, caller: &Caller, group: Option<Group>) -> bool {
        let in_group = group.map(|group| caller.in_group(group));
        let all = [Some(*caller), Some(caller.apart()), in_group];
        let mut all = all.into_iter().flatten();
        all.any(|caller| self.standing(&caller) == Standing::Good)
    }

    /// A control, and agreement, say that this caller's own answers prove its key for a group's.
    pub fn widen(&self, caller: &Caller, group: Group) {
        let now = self.state.clock.now();
        let own = caller.apart();
        let found = self.state.verdicts.of(&own.credential.key, &own.id, now);
        if let Some(good) = found.good.filter(|_| self.standing(&own) == Standing::Good) {
            let project = self.project(&caller.credential.key);
            self.remember(&caller.in_group(group), good, project);
        }
    }

    /// Whether the source is known to refuse strangers: what a service accepts says nothing before
    /// that. One control at a time is taken.
    pub(super) async fn source_is_controlled(&self, strange: [Question; 2]) -> bool {
        let (Some(_), Some(written)) = (self.settings.control, self.source.written()) else {
            return true;
        };
        let unit = self.state.units.known(&written);
        let (state, second) = (&self.state, self.state.second.as_deref());
        let _one = state.controlling.lock().await;
        if !unit.wants_control(state.clock.now()) {
            return unit.is_controlled(state.clock.now());
        }
        if unit.claim_control(second, state.clock.now()).await {
            let control = self.source.control(strange).await;
            self.controlled(&unit, control);
            return unit.is_controlled(state.clock.now());
        }
        // Another instance takes it now.
        let mut looks = 0;
        while let Some(second) = second
            && !unit.is_controlled(state.clock.now())
            && looks < 20
        {
            tokio::time::sleep(LOOK_AGAIN).await;
            unit.hear_now(second, state.clock.now()).await;
            looks += 1;
        }
        unit.is_controlled(state.clock.now())
    }

    /// A control was taken: it is remembered, counted, and told to the fleet.
    pub fn controlled(&self, unit: &Unit, control: Control) {
        let Some(every) = self.settings.control else {
            return;
        };
        let now = self.state.clock.now();
        unit.controlled(control, every, now);
        unit.tell_control(self.state.second.as_deref(), control, every, now);
        self.state.metrics.guard.controlled(control);
    }
}
