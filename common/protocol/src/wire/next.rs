//! The wire version after this one, as far as tests need it: builds with the feature `next-version`
//! speak it, and so does `deploy/test-upgrade.sh` with a pool of both.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::{Heartbeat, Register, Report, RunAttempt, Shape};
use crate::error::Result;

crate::versions! {
    Register: 2 = Said<Register>, 1 = Register;
    Heartbeat: 2 = Said<Heartbeat>, 1 = Heartbeat;
    RunAttempt: 2 = Said<RunAttempt>, 1 = RunAttempt;
    Report: 2 = Said<Report>, 1 = Report;
}

/// A message with a field more, in front: read as the other version, it is none.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Said<T> {
    more: String,
    message: T,
}

impl<T: Clone + Serialize + for<'de> Deserialize<'de>> Shape<T> for Said<T> {
    fn of(message: &T) -> Result<Cow<'_, Self>> {
        Ok(Cow::Owned(Self { more: "said by version 2".to_owned(), message: message.clone() }))
    }

    fn lift(self) -> T {
        self.message
    }
}
