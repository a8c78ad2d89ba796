//! What a process with `--http` shows, asked as a probe and a scraper do, and read strictly: a text
//! that Prometheus would only half understand fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::process::Process;

/// How long one answer may take.
const ANSWER_BOUND: Duration = Duration::from_secs(10);
/// What the process logs before the address.
const LOGGED: &str = "serving /healthz, /readyz and /metrics";

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its head, status line included.
    pub head: String,
    /// Its body.
    pub body: String,
}

/// Where a process says that it serves; of several lives in one log, the last. Nothing until it has
/// said so.
pub fn address(process: &Process) -> Option<SocketAddr> {
    let log = process.stderr();
    let line = log.lines().rev().find(|line| line.contains(LOGGED))?;
    let (_, rest) = line.split_once("address=")?;
    rest.split_whitespace().next()?.parse().ok()
}

/// A GET of a path.
///
/// # Panics
/// Where nobody answers within [`ANSWER_BOUND`].
#[track_caller]
pub fn get(address: SocketAddr, path: &str) -> Answer {
    let asked = ask(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"),
    );
    asked.unwrap_or_else(|e| panic!("{path} at {address}: {e}"))
}

fn ask(address: SocketAddr, request: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_BOUND)?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(std::io::Error::other)?;
    let (head, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no http answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status in {head:?}")))?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// What `/readyz` says: its status and its body.
#[track_caller]
pub fn ready(address: SocketAddr) -> (u16, Value) {
    let answer = get(address, "/readyz");
    let body: Value =
        serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e} in {:?}", answer.body));
    assert_eq!(body["ready"] == true, answer.status == 200, "{answer:?}");
    (answer.status, body)
}

/// Metrics as they were at one moment.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    /// Values by series, the labels in the order of their names: `name{a="x",b="y"}`.
    values: BTreeMap<String, f64>,
    text: String,
}

impl Scrape {
    /// Reads `/metrics`.
    #[track_caller]
    pub fn of(address: SocketAddr) -> Self {
        let answer = get(address, "/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
        Self::parse(&answer.body).unwrap_or_else(|why| panic!("{why} in\n{}", answer.body))
    }

    /// The value of a series.
    ///
    /// # Panics
    /// Where there is no such series.
    #[track_caller]
    pub fn value(&self, series: &str) -> f64 {
        *self.values.get(series).unwrap_or_else(|| panic!("no {series} in\n{}", self.text))
    }

    /// The sum over all series of a name.
    pub fn sum(&self, name: &str) -> f64 {
        self.values
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .map(|(_, value)| value)
            .sum()
    }

    /// The text as it came.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// How many series there are.
    pub fn series(&self) -> usize {
        self.values.len()
    }

    /// Reads the text format strictly.
    ///
    /// # Errors
    /// Which line breaks which rule.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            parser.line(line).map_err(|why| format!("{why}: {line:?}"))?;
        }
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        parser.end()?;
        Ok(Self { values: parser.values, text: text.to_owned() })
    }
}

#[derive(Default)]
struct Parser {
    values: BTreeMap<String, f64>,
    helps: BTreeSet<String>,
    /// Families that have begun, and the kind of the one at hand.
    begun: BTreeSet<String>,
    family: Option<(String, String)>,
    /// Buckets of histograms by series without `le`, in the order in which they came.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').ok_or("a HELP without text")?;
            is_name(name)?;
            return if help.trim().is_empty() || !self.helps.insert(name.to_owned()) {
                Err("an empty or second HELP".to_owned())
            } else {
                Ok(())
            };
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("a TYPE without a type")?;
            is_name(name)?;
            if !["counter", "gauge", "histogram"].contains(&kind) {
                return Err("an unexpected type".to_owned());
            }
            if !self.helps.contains(name) {
                return Err("a TYPE without HELP before it".to_owned());
            }
            if !self.begun.insert(name.to_owned()) {
                return Err("a family begins twice".to_owned());
            }
            if (kind == "counter") != name.ends_with("_total") {
                return Err("counters, and nothing else, end with _total".to_owned());
            }
            self.family = Some((name.to_owned(), kind.to_owned()));
            return Ok(());
        }
        if line.starts_with('#') {
            return Err("a comment that is neither HELP nor TYPE".to_owned());
        }
        self.sample(line)
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let (series, value) = line.rsplit_once(' ').ok_or("a sample without a value")?;
        let value: f64 = value.parse().map_err(|_| "a value that is no number")?;
        let (name, labels) = match series.split_once('{') {
            Some((name, rest)) => {
                (name, parse_labels(rest.strip_suffix('}').ok_or("labels that do not end")?)?)
            }
            None => (series, BTreeMap::new()),
        };
        is_name(name)?;
        let (family, kind) = self.family.as_ref().ok_or("a sample before its TYPE")?;
        match kind.as_str() {
            "histogram" => self.bucket(name, labels, value),
            _ if name != family => Err(format!("a sample in the midst of {family}")),
            _ if !value.is_finite() || (kind == "counter" && value < 0.0) => {
                Err("an odd value".to_owned())
            }
            _ => self.keep(name, &labels, value),
        }
    }

    fn bucket(
        &mut self,
        name: &str,
        mut labels: BTreeMap<String, String>,
        value: f64,
    ) -> Result<(), String> {
        let (family, _) = self.family.as_ref().ok_or("a bucket before its TYPE")?;
        let part =
            name.strip_prefix(family.as_str()).ok_or("a sample of another family")?.to_owned();
        match part.as_str() {
            "_bucket" => {
                let le = labels.remove("le").ok_or("a bucket without le")?;
                let bound = if le == "+Inf" {
                    f64::INFINITY
                } else {
                    le.parse().map_err(|_| "a le that is no number")?
                };
                let buckets = self.buckets.entry(series(family, &labels)).or_default();
                if buckets.last().is_some_and(|(last, count)| *last >= bound || *count > value) {
                    return Err("buckets that do not grow".to_owned());
                }
                buckets.push((bound, value));
                Ok(())
            }
            "_sum" => self.keep(name, &labels, value),
            "_count" => {
                let last =
                    self.buckets.get(&series(family, &labels)).and_then(|buckets| buckets.last());
                if last != Some(&(f64::INFINITY, value)) {
                    return Err("a count that is not that of the last bucket".to_owned());
                }
                self.keep(name, &labels, value)
            }
            _ => Err("neither bucket nor sum nor count".to_owned()),
        }
    }

    fn keep(
        &mut self,
        name: &str,
        labels: &BTreeMap<String, String>,
        value: f64,
    ) -> Result<(), String> {
        match self.values.insert(series(name, labels), value) {
            None => Ok(()),
            Some(_) => Err("a series that comes twice".to_owned()),
        }
    }

    fn end(&self) -> Result<(), String> {
        let unused: Vec<&String> = self.helps.difference(&self.begun).collect();
        if unused.is_empty() { Ok(()) } else { Err(format!("HELP without TYPE: {unused:?}")) }
    }
}

fn series(name: &str, labels: &BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return name.to_owned();
    }
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

fn is_name(name: &str) -> Result<(), String> {
    let sound =
        |at: usize, b: u8| b.is_ascii_lowercase() || b == b'_' || (at > 0 && b.is_ascii_digit());
    let all = !name.is_empty() && name.bytes().enumerate().all(|(at, b)| sound(at, b));
    if all { Ok(()) } else { Err(format!("{name:?} is no name as muster's are")) }
}

/// `a="x",b="y"`; values hold no escapes, because none of muster's needs one.
fn parse_labels(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for label in text.split(',') {
        let (name, value) = label.split_once('=').ok_or("a label without a value")?;
        is_name(name)?;
        let value = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .ok_or("a value without quotes")?;
        if value.contains(['"', '\\']) {
            return Err("a value with an escape".to_owned());
        }
        if labels.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err("a label that comes twice".to_owned());
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = "# HELP a_total All of a\n# TYPE a_total counter\n\
                         a_total{y=\"2\",x=\"1\"} 5\na_total 1\n\n\
                         # HELP h Times\n# TYPE h histogram\n\
                         h_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 9.5\nh_count 2\n";

    #[test]
    fn a_sound_text_is_read() {
        let scrape = Scrape::parse(SOUND).expect("it is sound");
        assert_eq!(
            (scrape.value("a_total{x=\"1\",y=\"2\"}"), scrape.sum("a_total"), scrape.series()),
            (5.0, 6.0, 4)
        );
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        for (from, to) in [
            ("# HELP a_total All of a\n", ""),
            ("# HELP a_total All of a\n", "# HELP a_total \n"),
            ("# TYPE a_total counter\n", ""),
            ("# TYPE a_total counter", "# TYPE a_total gauge"),
            ("# TYPE h histogram", "# TYPE h summary"),
            ("a_total 1", "a_total -1"),
            ("a_total 1", "a_total x"),
            ("a_total 1", "b_total 1"),
            ("a_total 1", "a_total{x=\"1\",y=\"2\"} 1"),
            ("a_total 1", "a_total{x=1} 1"),
            ("a_total 1", "# nonsense"),
            ("h_count 2", "h_count 3"),
            ("le=\"0.5\"} 1", "le=\"0.5\"} 3"),
            ("h_count 2\n", "h_count 2"),
        ] {
            assert!(SOUND.contains(from), "{from}");
            assert!(Scrape::parse(&SOUND.replacen(from, to, 1)).is_err(), "{from:?} as {to:?}");
        }
    }
}
