//! The version of the journal after this one, as far as tests need it: builds with the feature
//! `next-version` write it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use muster_protocol::error::Result;
use muster_protocol::wire::Shape;

use super::Entry;

muster_protocol::versions! {
    Entry: 2 = More, 1 = Entry;
}

/// An entry with a field more.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct More {
    entry: Entry,
    more: String,
}

impl Shape<Entry> for More {
    fn of(entry: &Entry) -> Result<Cow<'_, Self>> {
        Ok(Cow::Owned(Self { entry: entry.clone(), more: "said by version 2".to_owned() }))
    }

    fn lift(self) -> Entry {
        self.entry
    }
}
