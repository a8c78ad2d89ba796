//! A bound on what is logged of messages that others can send as often as they like: the first few
//! of a kind in each period are told, the rest is counted and told of in one line when a period is
//! over. Pure: time comes in as a value.

use std::collections::BTreeMap;

/// Told of each kind in each period.
const TOLD_MAX: u32 = 5;
/// How long a period is, in milliseconds.
const PERIOD_MS: u64 = 10_000;

/// What has been told of each kind. Kinds are names in the code, so what it holds is bounded.
#[derive(Debug, Clone, Default)]
pub struct Quiet {
    kinds: BTreeMap<&'static str, Period>,
}

#[derive(Debug, Clone, Default)]
struct Period {
    began_ms: u64,
    seen: u32,
}

impl Period {
    fn suppressed(&self) -> u32 {
        self.seen.saturating_sub(TOLD_MAX)
    }
}

impl Quiet {
    /// Whether one more of a kind is told. What an earlier period has suppressed is told of by
    /// [`Quiet::over`], which is to be asked first.
    pub fn tells(&mut self, now_ms: u64, kind: &'static str) -> bool {
        let period = self.kinds.entry(kind).or_insert(Period { began_ms: now_ms, seen: 0 });
        period.seen = period.seen.saturating_add(1);
        period.seen <= TOLD_MAX
    }

    /// Ends the periods that are over, and gives how many of each kind were suppressed in them,
    /// where any were.
    pub fn over(&mut self, now_ms: u64) -> Vec<(&'static str, u32)> {
        let is_over = |_: &&'static str, period: &mut Period| {
            now_ms.saturating_sub(period.began_ms) >= PERIOD_MS
        };
        let over = self.kinds.extract_if(.., is_over);
        over.map(|(kind, period)| (kind, period.suppressed()))
            .filter(|(_, suppressed)| *suppressed > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_kind_are_told_and_the_rest_is_counted() {
        let mut quiet = Quiet::default();
        let told = |quiet: &mut Quiet, now_ms: u64, kind| {
            (0..100).filter(|_| quiet.tells(now_ms, kind)).count()
        };
        assert_eq!(told(&mut quiet, 1_000, "a"), 5);
        assert_eq!(told(&mut quiet, 1_000, "b"), 5, "each kind by itself");
        assert_eq!(told(&mut quiet, 10_999, "a"), 0);
        assert_eq!(quiet.over(10_999), []);
        assert_eq!(quiet.over(11_000), [("a", 195), ("b", 95)]);
        assert_eq!(quiet.over(11_000), [], "once");
        assert_eq!(told(&mut quiet, 11_000, "a"), 5, "a new period begins with the next one");
    }

    #[test]
    fn what_is_rare_is_told_each_time() {
        let mut quiet = Quiet::default();
        for now_ms in (0..1_000_000).step_by(2_500) {
            assert_eq!(quiet.over(now_ms), []);
            assert!(quiet.tells(now_ms, "a"), "{now_ms}");
        }
    }

    #[test]
    fn a_flood_of_days_costs_a_few_lines_a_period() {
        let mut quiet = Quiet::default();
        let (mut lines, mut counted) = (0, 0);
        for now_ms in 0..1_000_000 {
            let over = quiet.over(now_ms);
            lines += over.len();
            counted += over.iter().map(|(_, count)| count).sum::<u32>();
            let told = u32::from(quiet.tells(now_ms, "a"));
            (lines, counted) = (lines + told as usize, counted + told);
        }
        assert_eq!(lines, 599, "five a period of ten seconds and one line of the rest of it");
        assert_eq!(
            counted + quiet.over(u64::MAX).iter().map(|(_, count)| count).sum::<u32>(),
            1_000_000,
            "nothing is lost"
        );
    }

    #[test]
    fn clocks_that_go_back_only_lengthen_a_period() {
        let mut quiet = Quiet::default();
        assert!(quiet.tells(5_000, "a"));
        assert_eq!(quiet.over(1), []);
        assert!(quiet.tells(1, "a"));
    }
}
