//! Sweeps: one tiny fixed job; a process is killed at every effect in turn, and the job ends as if
//! nothing had happened.

use super::faults::Weights;
use super::world::{CrashAt, RunReport, Setting};

/// What a sweep has found.
#[derive(Debug, Default)]
pub struct Swept {
    /// Runs.
    pub runs: u64,
    /// Crash points that broke something, and what.
    pub broken: Vec<(CrashAt, String)>,
}

fn fixed(crash_at: Option<CrashAt>) -> RunReport {
    super::run(&Setting {
        seed: 1,
        traces: false,
        weights: Some(Weights::default()),
        fixed: true,
        crash_at,
        script: None,
    })
}

/// Kills the coordinator before and after each of its effects, and a worker before each of its own;
/// only every `stride`th point is tried.
pub fn sweep(stride: usize) -> Swept {
    let calm = fixed(None);
    let mut swept = Swept { runs: 1, broken: Vec::new() };
    if let Some(violation) = calm.violation {
        swept.broken.push((CrashAt::BeforeEffect(u64::MAX), violation));
    }
    let (coordinator, worker) = calm.effects;
    let points = (0..coordinator)
        .flat_map(|effect| [CrashAt::BeforeEffect(effect), CrashAt::AfterEffect(effect)])
        .chain((0..worker).map(CrashAt::WorkerEffect));
    for point in points.step_by(stride.max(1)) {
        let report = fixed(Some(point));
        swept.runs += 1;
        let lost = (!report.reach.contains_key("job succeeded"))
            .then(|| "the job did not succeed".to_owned());
        if let Some(why) = report.violation.or(lost) {
            swept.broken.push((point, why));
        }
    }
    swept
}
