//! What the leader itself cannot reach: NATS or some of its servers, the journal, stores.

use super::Machine;

/// Shortest outage of the journal that people are told of, in milliseconds.
const OUTAGE_MS_MIN: u64 = 1000;

/// What is away at the moment.
#[derive(Debug)]
pub(super) struct Outages {
    connected: bool,
    journal_stalled: Option<String>,
    /// Times in a row that the journal's writer could not write.
    journal_failures: u32,
    /// How full the journal's stream was when it was last asked.
    journal_used_percent: u32,
    /// Since when the journal cannot be written.
    outage_since_ms: Option<u64>,
    /// NATS servers that do not answer, and why.
    servers_away: Vec<(String, String)>,
    /// Stores that do not answer the leader, and why.
    stores_away: Vec<(String, String)>,
}

impl Outages {
    pub(super) fn none() -> Self {
        Self {
            connected: true,
            journal_stalled: None,
            journal_failures: 0,
            journal_used_percent: 0,
            outage_since_ms: None,
            servers_away: Vec::new(),
            stores_away: Vec::new(),
        }
    }

    /// Whether the leader's own connection to NATS stands.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// What the journal's writer waits for.
    pub(super) fn journal_stalled(&self) -> Option<&str> {
        self.journal_stalled.as_deref()
    }

    /// Times in a row that the journal's writer could not write.
    pub(super) fn journal_failures(&self) -> u32 {
        self.journal_failures
    }

    /// How full the journal's stream is, in percent.
    pub(super) fn journal_used_percent(&self) -> u32 {
        self.journal_used_percent
    }

    pub(super) fn servers_away(&self) -> impl Iterator<Item = &str> {
        self.servers_away.iter().map(|(server, _)| server.as_str())
    }

    pub(super) fn stores_away(&self) -> &[(String, String)] {
        &self.stores_away
    }

    pub(super) fn journal_room(&mut self, used_percent: u32) {
        self.journal_used_percent = used_percent;
    }

    pub(super) fn stores(&mut self, away: Vec<(String, String)>) {
        self.stores_away = away;
    }
}

impl Machine {
    pub(crate) fn connection(&mut self, up: bool) {
        if up == self.outages.connected {
            return;
        }
        self.outages.connected = up;
        if up {
            let text = "the coordinator's connection to NATS stands again";
            self.event(None, "info", "partition-healed", text);
        } else {
            let text = "the coordinator's own connection to NATS is lost; nobody's silence counts \
                until it is back";
            self.event(None, "warning", "partition-suspected", text);
        }
    }

    pub(crate) fn journal_stalls(&mut self, why: Option<String>) {
        self.outages.journal_failures =
            if why.is_some() { self.outages.journal_failures.saturating_add(1) } else { 0 };
        let before = std::mem::replace(&mut self.outages.journal_stalled, why);
        match (before, &self.outages.journal_stalled) {
            (None, Some(_)) => self.outages.outage_since_ms = Some(self.now_ms),
            (Some(why), None) => self.tell_outage(&why),
            _ => {}
        }
    }

    fn tell_outage(&mut self, why: &str) {
        let since_ms = self.outages.outage_since_ms.take().unwrap_or(self.now_ms);
        let lasted_ms = self.now_ms.saturating_sub(since_ms);
        if lasted_ms >= OUTAGE_MS_MIN {
            let text = format!(
                "for {lasted_ms} ms the journal could not be written ({why}); nothing was committed"
            );
            self.event(None, "warning", "journal-back", text);
        }
    }

    /// The servers of a NATS cluster that do not answer: each is named as it goes, and as it comes
    /// back.
    pub(crate) fn nats_servers(&mut self, away: Vec<(String, String)>) {
        let before = std::mem::take(&mut self.outages.servers_away);
        let is_in =
            |list: &[(String, String)], server: &str| list.iter().any(|(known, _)| known == server);
        for (server, why) in away.iter().filter(|(server, _)| !is_in(&before, server)) {
            let text = format!("the NATS server {server} does not answer: {why}");
            self.event(None, "warning", "nats-server-away", text);
        }
        for (server, _) in before.iter().filter(|(server, _)| !is_in(&away, server)) {
            let text = format!("the NATS server {server} answers again");
            self.event(None, "info", "nats-server-back", text);
        }
        self.outages.servers_away = away;
    }
}
