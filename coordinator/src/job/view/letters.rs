//! What people are told beyond events: the dead letter of a job that fails, and the malformed
//! records that were left out.

use muster_protocol::Error;
use muster_protocol::api::{DeadLetter, FailedAttempt};
use muster_protocol::ids::JobId;
use muster_protocol::wire::SortedRun;

use crate::job::Machine;
use crate::job::io::Effect;
use crate::job::ledger::durable::Failure;
use crate::job::view::status::skipped_objects;

/// Most attempts in one dead letter: it must fit into a message.
const ATTEMPTS_MAX: usize = 500;
/// Most input objects in one.
const OBJECTS_MAX: usize = 100;

/// Most different causes in one line.
const CAUSES_MAX: usize = 3;

/// What several attempts failed of, each cause once. Each begins with who met with it: `worker W on
/// H: cause`.
pub(crate) fn causes(errors: &[String]) -> String {
    let mut causes: Vec<(&str, Vec<&str>, usize)> = Vec::new();
    for error in errors {
        let (who, cause) = error.split_once(": ").unwrap_or(("", error));
        match causes.iter_mut().find(|(known, ..)| *known == cause) {
            Some((_, all, count)) => {
                *count += 1;
                if !all.contains(&who) {
                    all.push(who);
                }
            }
            None => causes.push((cause, vec![who], 1)),
        }
    }
    let more = causes.len().saturating_sub(CAUSES_MAX);
    let say = |(cause, who, count): &(&str, Vec<&str>, usize)| match count {
        1 => format!("{}: {cause}", who.join(", ")),
        count => format!("{}: {cause} ({count} times)", who.join(", ")),
    };
    let said: Vec<String> = causes.iter().take(CAUSES_MAX).map(say).collect();
    let rest = if more > 0 { format!("; and {more} other causes") } else { String::new() };
    format!("{}{rest}", said.join("; "))
}

impl Machine {
    /// Sends the history of a job that fails where it outlives the job.
    pub(crate) fn dead_letter(&mut self, job: &JobId, error: &Error) {
        let Some((durable, active)) = self.jobs.both(job) else { return };
        let told = |failure: &Failure| FailedAttempt {
            task: failure.attempt.task.to_string(),
            generation: failure.attempt.generation.0,
            attempt: failure.attempt.to_string(),
            worker: failure.worker.clone(),
            kind: format!("{:?}", failure.kind).to_lowercase(),
            error: failure.error.clone(),
            unix_ms: active.told.failed_at(&failure.attempt),
        };
        let on_its_way: Vec<Failure> = self
            .ledger
            .records()
            .filter_map(|record| match record {
                crate::journal::record::Record::AttemptFailed(failed) if failed.job == *job => {
                    Some(Failure::from(&**failed))
                }
                _ => None,
            })
            .collect();
        let all = durable.failures.iter().chain(&on_its_way);
        // The last are those that the job fails of.
        let mut attempts: Vec<FailedAttempt> = all.map(told).collect();
        attempts.drain(..attempts.len().saturating_sub(ATTEMPTS_MAX));
        let letter = DeadLetter {
            unix_ms: self.unix_ms(),
            epoch: self.epoch.0,
            job: job.clone(),
            error: error.message.clone(),
            skipped_objects: skipped_objects(durable, Some(active), OBJECTS_MAX),
            attempts,
        };
        self.out.push(Effect::DeadLetter(Box::new(letter)));
    }

    /// Tells of malformed records that a sort task has left out.
    pub(crate) fn tell_bad_records(&mut self, job: &JobId, run: &SortedRun) {
        let (Some(active), Some(first)) = (self.jobs.active(job), run.bad_records.first()) else {
            return;
        };
        let object = active.plan.as_ref().and_then(|plan| plan.objects.get(first.object as usize));
        let url = object.map(|object| object.url.clone()).unwrap_or_default();
        let text = format!(
            "{} malformed records are left out, the first of them at byte {} of {url}: {}",
            run.skipped.records, first.offset, first.reason
        );
        self.event(Some(job), "warning", "bad-records", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let check = |errors: &[&str], expected: &str| {
            let errors: Vec<String> = errors.iter().map(|error| (*error).to_owned()).collect();
            assert_eq!(causes(&errors), expected);
        };
        check(&["worker a on h: full"], "worker a on h: full");
        check(
            &["worker a on h: full: x", "worker b on h: full: x", "worker a on h: full: x"],
            "worker a on h, worker b on h: full: x (3 times)",
        );
        check(
            &["a: 1", "a: 2", "b: 1", "a: 3", "a: 4", "a: 5"],
            "a, b: 1 (2 times); a: 2; a: 3; and 2 other causes",
        );
        check(&[], "");
    }
}
