//! What must hold between two stages: runs tile the input and sum to it, parts sum to the runs and
//! follow one another.

use muster_kernel::proof::{self, Interval};
use muster_protocol::ids::JobId;
use muster_protocol::plan::{PLAN_BYTES_MAX, PinnedRun, PinnedRuns, Plan};
use muster_protocol::planted::{self, Bug};
use muster_protocol::wire::BlobRef;
use muster_protocol::{Error, Result, names};

use crate::job::Machine;
use crate::job::io::Effect;
use crate::job::law::{RepairStep, Step};
use crate::job::ledger::durable::DurableJob;
use crate::journal::record::Record;

impl Machine {
    /// The shuffle barrier: the runs tile the input and sum to it; only then they are pinned. A
    /// repair comes to it again.
    pub(crate) fn pin_runs(&mut self, job: &JobId, plan: &Plan) {
        let nonce = self.nonces.next();
        let Some((durable, active)) = self.jobs.both_mut(job) else { return };
        match check_runs(durable, plan).and_then(|()| pinned_runs(job, durable)) {
            Ok(bytes) => {
                let ticket = self.flow.tickets.issue(job);
                active.pins_runs(ticket);
                let url = active.scratch.join(&names::runs_path(self.epoch, nonce));
                self.out.push(Effect::WriteObject { url, bytes, ticket });
            }
            Err(error) => self.fail(job, error),
        }
    }

    pub(crate) fn object_written(&mut self, ticket: u64, result: Result<BlobRef>) {
        let Some(job) = self.flow.tickets.redeem(ticket) else { return };
        if self.plan_written(&job, ticket, &result) {
            return;
        }
        self.wrote(&job);
        let Some(active) = self.jobs.active_mut(&job) else { return };
        let works = active.step() == Step::Working;
        // A job that is about to end needs no list any more: its record would come after that of
        // the end.
        let again = works && active.tasks.awaits_list(ticket);
        let prepares = active.step() == Step::PreparingCommit;
        if !again && active.step() != Step::PinningRuns && !prepares {
            return;
        }
        match result {
            Ok(manifest) if prepares => self.decide(&job, manifest),
            Ok(runs) => {
                if again {
                    active.tasks.advance_repair(RepairStep::Recording);
                } else {
                    active.advance(Step::Deciding);
                }
                active.moved(self.now_ms);
                let took_ms = active.elapsed_ms(self.now_ms);
                self.record(Record::RunsPinned { job, runs, took_ms });
            }
            Err(error) => self.store_trouble(&job, error),
        }
    }
}

/// P1 at the sort barrier: what the tasks consumed tiles every object, and what they wrote and
/// dropped sums to what they read.
pub(crate) fn check_runs(durable: &DurableJob, plan: &Plan) -> Result<()> {
    let broken = |what: String| {
        Error::corrupt(format!("P1 (conservation) is broken at the sort barrier: {what}"))
    };
    // Of an object that is left out nothing may have been read.
    let read =
        |at: u32, bytes: u64| if durable.skipped_objects.contains_key(&at) { 0 } else { bytes };
    let sizes: Vec<u64> =
        (0..).zip(&plan.objects).map(|(at, object)| read(at, object.units())).collect();
    let intervals: Vec<Interval> =
        durable.runs.values().flat_map(|run| run.intervals.iter().copied()).collect();
    let tiles =
        if planted::is(Bug::DropTiling) { Ok(()) } else { proof::tiles(&intervals, &sizes) };
    tiles.map_err(|why| {
        let object = plan.objects.get(why.object() as usize);
        broken(object.map_or(why.to_string(), |object| format!("{why} ({})", object.url)))
    })?;
    let totals = &durable.run_totals;
    let out = totals.kept.plus(&totals.dropped).plus(&totals.skipped);
    if out == totals.input || planted::is(Bug::DropSums) {
        Ok(())
    } else {
        Err(broken(format!("read {}, but wrote, dropped and skipped {out}", totals.input)))
    }
}

pub(crate) fn pinned_runs(job: &JobId, durable: &DurableJob) -> Result<Vec<u8>> {
    let runs = durable.runs.values().map(|run| PinnedRun {
        attempt: run.attempt,
        url: run.url.clone(),
        replica: run.replica.clone(),
        bytes: run.bytes,
        index_digest: run.index_digest,
    });
    let bytes = PinnedRuns { job: job.clone(), runs: runs.collect() }.to_bytes()?;
    if bytes.len() as u64 > PLAN_BYTES_MAX {
        return Err(Error::exhausted(format!(
            "the list of runs has {} bytes, the limit is {PLAN_BYTES_MAX}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

/// P1 and P2 at the end: the parts hold what the runs held, less what they dropped, and each begins
/// at or after the end of the one before.
pub(crate) fn check_parts(durable: &DurableJob) -> Result<()> {
    let (held, totals) = (durable.run_totals.kept, &durable.part_totals);
    let out = totals.kept.plus(&totals.dropped);
    if out != held && !planted::is(Bug::DropSums) {
        let text = format!(
            "P1 (conservation) is broken at the commit: the runs hold {held}, but the parts hold \
                and dropped {out}"
        );
        return Err(Error::corrupt(text));
    }
    let mut before: Option<(u32, &[u8])> = None;
    for part in durable.parts.values().filter(|part| part.kept.records > 0) {
        if let Some((partition, last)) =
            before.filter(|(_, last)| *last > part.first_key.as_slice())
        {
            let text = format!(
                "P2 (order) is broken: part {partition} ends with {last:02x?}, part {} begins \
                    before it",
                part.partition
            );
            return Err(Error::corrupt(text));
        }
        before = Some((part.partition, &part.last_key));
    }
    Ok(())
}
