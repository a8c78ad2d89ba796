//! What may go wrong in a run: how often, drawn from the seed. Whole classes are off in some seeds,
//! so that rare combinations of the others get room.

use std::sync::Arc;

use muster_platform::clock::Clock;
use muster_platform::faults::{FaultPlan, Faults};

use super::dice::Dice;

/// Chances in a million, unless they say otherwise; all of them are 0 once the run is healed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weights {
    /// A message is lost.
    pub lose: u32,
    /// A message comes twice.
    pub double: u32,
    /// A message takes long, and is overtaken.
    pub late: u32,
    /// A store call is refused (503) before it does anything.
    pub refuse: u32,
    /// A store call is carried out, but its answer is lost.
    pub lose_answer: u32,
    /// A store call never reaches the store, and times out.
    pub lose_call: u32,
    /// A store call is carried out long after its caller gave up.
    pub late_call: u32,
    /// A read of scratch gives flipped bytes, once.
    pub flip_read: u32,
    /// A read ends early.
    pub short_read: u32,
    /// A run is damaged for good when it is written: flipped, cut short, or lost.
    pub rot: u32,
    /// An append's answer is lost.
    pub append_applied: u32,
    /// An append is lost.
    pub append_lost: u32,
    /// An append arrives after its writer has asked again.
    pub append_late: u32,
    /// The journal refuses for want of room.
    pub append_full: u32,
    /// A read of the journal misses its newest entries.
    pub stale_read: u32,
    /// A call to the journal fails.
    pub ledger_fails: u32,
    /// An attempt runs out of memory or disk.
    pub exhaust: u32,
    /// A worker's memory changes a record after it was read and before it is written.
    pub bad_memory: u32,
    /// A worker takes less of its split than it was given.
    pub torn_split: u32,
    /// A leader is cut off with a minority of the servers while a call of its own changes OUTPUT,
    /// and the store is far from there.
    pub isolate: u32,
    /// Faults of processes and links in a run, as a number.
    pub events: u32,
    /// Which kinds of them, as bits of [`Kind`].
    pub kinds: u32,
}

/// A fault of a process or a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "their names say it")]
pub enum Kind {
    CrashWorker,
    PauseWorker,
    SlowWorker,
    StopWorker,
    CrashCoordinator,
    CrashAtEffect,
    PauseCoordinator,
    CutNats,
    CutStore,
    CutNatsIn,
    CutNatsOut,
    CutStoreAnswers,
    RestartServer,
    StoreAway,
    Clog,
    SecondLeader,
    ChangeInput,
    Resign,
    DrainWorker,
    LoseInput,
}

/// All kinds.
pub const KINDS: [Kind; 20] = [
    Kind::CrashWorker,
    Kind::PauseWorker,
    Kind::SlowWorker,
    Kind::StopWorker,
    Kind::CrashCoordinator,
    Kind::CrashAtEffect,
    Kind::PauseCoordinator,
    Kind::CutNats,
    Kind::CutStore,
    Kind::CutNatsIn,
    Kind::CutNatsOut,
    Kind::CutStoreAnswers,
    Kind::RestartServer,
    Kind::StoreAway,
    Kind::Clog,
    Kind::SecondLeader,
    Kind::ChangeInput,
    Kind::Resign,
    Kind::DrainWorker,
    Kind::LoseInput,
];

impl Weights {
    /// What a seed may suffer.
    pub fn draw(dice: &mut Dice) -> Self {
        // One seed in sixteen is calm: what happens there, happens without any fault.
        if dice.below(16) == 0 {
            return Self::default();
        }
        let mut weights = Self::default();
        let level = dice.pick(&[1, 1, 3, 10]);
        let some = |dice: &mut Dice, share: u64, at_most: u32| {
            if dice.below(100) < share {
                1 + dice.below(u64::from(at_most) * level / 3 + 1) as u32
            } else {
                0
            }
        };
        if dice.below(3) > 0 {
            weights.lose = some(dice, 60, 30_000);
            weights.double = some(dice, 60, 50_000);
            weights.late = some(dice, 60, 30_000);
        }
        if dice.below(3) > 0 {
            weights.refuse = some(dice, 50, 40_000);
            weights.lose_answer = some(dice, 50, 20_000);
            weights.lose_call = some(dice, 40, 10_000);
            weights.late_call = some(dice, 40, 10_000);
        }
        if dice.below(3) == 0 {
            weights.flip_read = some(dice, 50, 5_000);
            weights.short_read = some(dice, 50, 5_000);
        }
        if dice.below(4) == 0 {
            weights.rot = some(dice, 100, 40_000);
        }
        if dice.below(2) == 0 {
            weights.append_applied = some(dice, 60, 40_000);
            weights.append_lost = some(dice, 60, 40_000);
            weights.append_late = some(dice, 40, 20_000);
            weights.append_full = some(dice, 20, 20_000);
            weights.stale_read = some(dice, 40, 300_000);
            weights.ledger_fails = some(dice, 40, 40_000);
        }
        if dice.below(3) == 0 {
            weights.exhaust = some(dice, 70, 30_000);
        }
        if dice.below(8) == 0 {
            weights.bad_memory = some(dice, 70, 30_000);
            weights.torn_split = some(dice, 70, 30_000);
        }
        if dice.below(4) > 0 {
            weights.events = 1 + dice.below(2 + 2 * level) as u32;
            weights.kinds = (dice.next() as u32 | dice.next() as u32) & 0xf_ffff;
        }
        // A partition at any moment meets a commit too seldom to show a fence that reads.
        if dice.below(8) == 0 {
            weights.isolate = some(dice, 100, 300_000);
        }
        weights
    }

    /// Whether a run without any fault of this seed would be the same.
    pub fn is_calm(&self) -> bool {
        *self == Self::default() || (Self { kinds: 0, ..self.clone() }) == Self::default()
    }

    /// The kinds of process and link faults that may come.
    pub fn kinds(&self) -> Vec<Kind> {
        let chosen: Vec<Kind> = KINDS
            .into_iter()
            .enumerate()
            .filter(|(at, _)| self.kinds >> at & 1 == 1)
            .map(|(_, kind)| kind)
            .collect();
        if chosen.is_empty() { KINDS.to_vec() } else { chosen }
    }
}

/// Damage that an attempt's own machine does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Harm {
    /// Memory is refused.
    pub exhausts: bool,
    /// A record changes after it was counted.
    pub bad_memory: bool,
    /// The end of the split is never read.
    pub torn_split: bool,
}

impl Harm {
    /// What is injected into the attempt; what is torn off its split is torn off its order.
    pub fn faults(self, clock: Arc<dyn Clock>) -> Option<Arc<Faults>> {
        let mut plan = FaultPlan { seed: clock.random(), rules: Vec::new() };
        for (is, rule) in [
            // Once, so that half of the memory is tried; or each time.
            (self.exhausts && plan.seed.is_multiple_of(2), "memory.alloc:refuse,times=1"),
            (self.exhausts && !plan.seed.is_multiple_of(2), "memory.alloc:refuse"),
            (self.bad_memory, "memory.hold:flip,times=1"),
        ] {
            plan.rules.extend(rule.parse().ok().filter(|_| is));
        }
        (!plan.rules.is_empty()).then(|| Arc::new(Faults::new(plan, "w", clock)))
    }
}

/// What the run has seen: which marks were reached, how often.
pub type Reach = std::collections::BTreeMap<&'static str, u64>;

/// Marks that many runs together must reach.
pub const MARKS: &[&str] = &[
    "take-over",
    "two leaders at once",
    "old leader fenced",
    "zombie report",
    "zombie upload completion refused",
    "unknown outcome applied",
    "unknown outcome not applied",
    "append conflict",
    "stale read",
    "read from a minority",
    "re-grant",
    "late sweep",
    "orphan upload in OUTPUT",
    "upload revoked",
    "worker declared dead",
    "worker rejoined",
    "run damaged",
    "lineage re-run during merging",
    "input torn",
    "snapshot",
    "spill",
    "run of several parts",
    "output of several parts",
    "speculation race",
    "replica fall-back",
    "quarantine",
    "hand-back",
    "input changed",
    "input left out",
    "run made anew without what is left out",
    "malformed records of what is left out",
    "input read at another try",
    "unreadable input fails the job",
    "unreadable input in a repair",
    "files of workers",
    "owner waited for",
    "owner came back",
    "owner lost for good",
    "owner not needed any more",
    "owned run made anew",
    "worker drained",
    "leader resigned",
    "resignation followed",
    "resignation followed at once",
    "sampled again",
    "sampled again under two leaders",
    "too uneven after all rounds",
    "pinned again",
    "identical overwrite",
    "upload gone, object stands",
    "take-over with bad records",
    "job succeeded",
    "job failed",
    "job cancelled",
];
