//! What a check came to.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Could not be seen from here.
    Unknown,
    /// Works, but should be looked at.
    Warning,
    /// Jobs will fail, hang or be at risk.
    Problem,
}

impl Level {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Unknown => "unknown",
            Level::Warning => "warning",
            Level::Problem => "problem",
        }
    }
}

/// One check and its result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// A stable word for the check.
    pub(super) check: String,
    pub(super) level: Level,
    /// What was seen, with figures.
    pub(super) seen: String,
    /// What it means and what to do; empty where all is well.
    pub(super) advice: String,
}

impl Finding {
    pub(super) fn new(
        check: impl Into<String>,
        level: Level,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { check: check.into(), level, seen: seen.into(), advice: advice.into() }
    }

    pub(super) fn ok(check: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, seen, "")
    }

    pub(super) fn unknown(
        check: impl Into<String>,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Unknown, seen, advice)
    }

    pub(super) fn warning(
        check: impl Into<String>,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Warning, seen, advice)
    }

    pub(super) fn problem(
        check: impl Into<String>,
        seen: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new(check, Level::Problem, seen, advice)
    }
}
