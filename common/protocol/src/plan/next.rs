//! The version of plans after this one, as far as tests need it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Plan;
use crate::error::{Error, Result};
use crate::wire::Shape;

crate::versions! {
    Plan: 2 = Plan, 1 = Old;
}

/// What version 1 cannot say.
pub(super) const EXTENSION: &str = "said by version 2";

/// Version 1: the bytes of a plan without that extension.
#[derive(Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Old(Plan);

impl Shape<Plan> for Old {
    fn of(plan: &Plan) -> Result<Cow<'_, Self>> {
        if plan.extension == EXTENSION {
            return Err(Error::invalid("version 1 does not know this extension"));
        }
        Ok(Cow::Owned(Self(plan.clone())))
    }

    fn lift(self) -> Plan {
        self.0
    }
}
