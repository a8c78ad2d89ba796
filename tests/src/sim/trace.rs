//! What happened: one line a state transition, and a hash over everything, so that two runs of one
//! seed can be compared.

/// Lines kept at most; a run that is longer keeps its end.
const LINES_MAX: usize = 20_000;

/// The trace of one run.
#[derive(Debug, Default)]
pub struct Trace {
    hash: u64,
    keeps: bool,
    lines: std::collections::VecDeque<String>,
}

impl Trace {
    /// A trace that keeps its lines, or only their hash.
    pub fn new(keeps: bool) -> Self {
        Self { keeps, ..Self::default() }
    }

    /// Mixes a number into the hash.
    pub fn mix(&mut self, value: u64) {
        self.hash = (self.hash.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// Notes a transition.
    pub fn line(&mut self, now_us: u64, who: &dyn std::fmt::Display, what: &dyn std::fmt::Display) {
        let text = format!("{:>9.3} {who}: {what}", now_us as f64 / 1_000_000.0);
        self.mix(muster_protocol::wire::digest(text.as_bytes()));
        if self.keeps {
            self.lines.push_back(text);
            if self.lines.len() > LINES_MAX {
                self.lines.pop_front();
            }
        }
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines that were kept.
    pub fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{line}\n")).collect()
    }
}
