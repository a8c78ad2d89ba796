//! Where the jobs stand, asked again and again by a thread of its own, so that a server that does
//! not answer holds up nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::ConnectOptions;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

const ASK_EVERY: Duration = Duration::from_millis(100);
const ANSWER_BOUND: Duration = Duration::from_secs(1);

/// The last answer for each job that is watched.
#[derive(Debug)]
pub struct Watch {
    answers: Arc<Mutex<BTreeMap<String, Value>>>,
    _runtime: Runtime,
}

impl Watch {
    /// Asks the deployment on this server.
    ///
    /// # Panics
    /// Where the server does not answer now; later it may be away.
    pub fn start(nats_url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let options = ConnectOptions::new()
            .ping_interval(Duration::from_secs(2))
            .reconnect_delay_callback(|_| Duration::from_millis(100));
        let client = runtime.block_on(options.connect(nats_url)).expect("the NATS server answers");
        let answers: Arc<Mutex<BTreeMap<String, Value>>> = Arc::default();
        runtime.spawn(ask(client, answers.clone()));
        Self { answers, _runtime: runtime }
    }

    /// Watches a job from now on.
    pub fn add(&self, job: &str) {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(job.to_owned(), Value::Null);
    }

    /// Watches a job no longer.
    pub fn remove(&self, job: &str) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).remove(job);
    }

    /// The last that was heard of a job; null before there was an answer.
    pub fn status(&self, job: &str) -> Value {
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(job)
            .cloned()
            .unwrap_or(Value::Null)
    }
}

async fn ask(client: async_nats::Client, answers: Arc<Mutex<BTreeMap<String, Value>>>) {
    loop {
        let jobs: Vec<String> =
            answers.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        for job in jobs {
            let question =
                client.request("muster.api.status", json!({ "job": job }).to_string().into());
            let Ok(Ok(answer)) = tokio::time::timeout(ANSWER_BOUND, question).await else {
                continue;
            };
            let status: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = answers.get_mut(&job)
                && status["job"] == job.as_str()
            {
                *known = status;
            }
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
