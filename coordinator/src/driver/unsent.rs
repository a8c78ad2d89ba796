//! Events that could not be sent while the connection was down. They are kept in order within a bound and follow when it stands again; of what is lost beyond the
//! bound, the oldest, people are told the number.

use std::collections::VecDeque;

use muster_common::api::Event;

/// Events that are kept.
const UNSENT_MAX: usize = 1000;

/// Events that wait for the connection, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Unsent {
    events: VecDeque<Event>,
    /// When the first of those that were dropped happened, and how many they are.
    dropped: Option<(u64, u64)>,
}

impl Unsent {
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Keeps an event; beyond the bound the oldest is dropped and counted.
    pub(super) fn keep(&mut self, event: Event) {
        if self.events.len() >= UNSENT_MAX
            && let Some(oldest) = self.events.pop_front()
        {
            self.dropped = Some(self.dropped.map_or((oldest.unix_ms, 1), |(since_ms, count)| (since_ms, count + 1)));
        }
        self.events.push_back(event);
    }

    /// What is to be sent now, in order; first of all how much is missing before it.
    pub(super) fn take(&mut self) -> Vec<Event> {
        let events = std::mem::take(&mut self.events);
        let epoch = events.front().map_or(0, |event| event.epoch);
        let missing = self.dropped.take().map(|(unix_ms, count)| Event {
            unix_ms,
            epoch,
            job: None,
            severity: "warning".to_owned(),
            kind: "events-dropped".to_owned(),
            text: format!(
                "{count} events from while the connection to NATS was down are lost; the last {UNSENT_MAX} follow"
            ),
        });
        missing.into_iter().chain(events).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> Event {
        let (severity, kind) = ("info".to_owned(), "test".to_owned());
        Event { unix_ms: n, epoch: 7, job: None, severity, kind, text: n.to_string() }
    }

    #[test]
    fn what_is_kept_comes_once_in_order() {
        let mut unsent = Unsent::default();
        (0..3).for_each(|n| unsent.keep(event(n)));
        assert_eq!(unsent.take(), [event(0), event(1), event(2)]);
        assert!(unsent.is_empty() && unsent.take().is_empty());
    }

    #[test]
    fn beyond_the_bound_the_oldest_go_and_are_counted_in_one_event() {
        let mut unsent = Unsent::default();
        let all = UNSENT_MAX as u64 + 5;
        (0..all).for_each(|n| unsent.keep(event(n)));
        let sent = unsent.take();
        assert_eq!(sent.len(), UNSENT_MAX + 1);
        let Event { unix_ms, epoch, kind, text, .. } = &sent[0];
        assert_eq!((*unix_ms, *epoch, kind.as_str()), (0, 7, "events-dropped"));
        assert!(text.starts_with("5 events"), "{text}");
        assert_eq!((&sent[1], &sent[UNSENT_MAX]), (&event(5), &event(all - 1)));
        unsent.keep(event(9));
        assert_eq!(unsent.take(), [event(9)], "they are told of once");
    }
}
