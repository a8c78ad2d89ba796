//! In which order a merge takes its runs: that of their numbers, whatever order their indexes
//! arrive in. Equal keys come out in the order of the runs they are read from, and runs are
//! numbered as their splits lie in the input; so this is half of the one order (P3). The other half
//! is the kernel's.

use muster_protocol::planted::{self, Bug};

/// What was read of each run, with the run's number, as it came in: in the order in which it is to
/// be merged.
pub fn by_run<T>(mut arrived: Vec<(u32, T)>) -> Vec<T> {
    if !planted::is(Bug::RunsAsTheyArrive) {
        arrived.sort_by_key(|(run, _)| *run);
    }
    arrived.into_iter().map(|(_, read)| read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_taken_by_number_however_they_arrive() {
        let mut arrived: Vec<u32> = (0..5).collect();
        // Each rotation, there and back.
        for turn in 0..10 {
            let read = arrived.iter().map(|run| (*run, format!("run {run}"))).collect();
            assert_eq!(
                by_run(read),
                ["run 0", "run 1", "run 2", "run 3", "run 4"],
                "they came as {arrived:?}"
            );
            arrived.rotate_left(1);
            if turn == 4 {
                arrived.reverse();
            }
        }
        assert!(by_run(Vec::<(u32, ())>::new()).is_empty());
    }
}
