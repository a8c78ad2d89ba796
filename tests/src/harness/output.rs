//! What a job left in OUTPUT, read back from a folder or a bucket.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::bucket::Bucket;
use super::oracle::assert_same_bytes;
use super::sandbox::files_below;

/// Everything in an OUTPUT.
#[derive(Debug)]
pub struct Output {
    /// Names and bytes of the parts, in order.
    pub parts: Vec<(String, Vec<u8>)>,
    /// The manifest in `_SUCCESS`, if it is there.
    pub success: Option<Value>,
    /// Names of all else.
    pub others: Vec<String>,
}

impl Output {
    /// Reads a folder; one that does not exist holds nothing.
    pub fn of_folder(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        let read = |name: &str| {
            fs::read(folder.join(name))
                .unwrap_or_else(|e| panic!("{}: {e}", folder.join(name).display()))
        };
        Self::collect(&files_below(folder), read)
    }

    /// Reads what lies below a prefix of a bucket.
    pub fn of_bucket(bucket: &Bucket, prefix: &str) -> Self {
        let names: Vec<String> = bucket
            .list(prefix)
            .iter()
            .map(|key| key[prefix.len()..].trim_start_matches('/').to_owned())
            .collect();
        Self::collect(&names, |name| bucket.get(&format!("{prefix}/{name}")))
    }

    fn collect(names: &[String], read: impl Fn(&str) -> Vec<u8>) -> Self {
        let mut output = Self { parts: Vec::new(), success: None, others: Vec::new() };
        // A job's claim on OUTPUT goes with the clean-up, which comes right after its end.
        for name in names.iter().filter(|name| !name.starts_with("_muster/claims/")) {
            if name.starts_with("part-") {
                output.parts.push((name.clone(), read(name)));
            } else if name == "_SUCCESS" {
                output.success =
                    Some(serde_json::from_slice(&read(name)).expect("_SUCCESS is JSON"));
            } else {
                output.others.push(name.clone());
            }
        }
        output
    }

    /// The parts one after the other.
    pub fn concatenated(&self) -> Vec<u8> {
        self.parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect()
    }

    /// Checks that it is whole and right: `_SUCCESS` is there, the parts are those it names,
    /// numbered from 0 and of the lengths it says, nothing else lies there, and the parts one after
    /// the other are `want`.
    ///
    /// # Panics
    /// Where not.
    #[track_caller]
    pub fn assert_is(&self, want: &[u8]) {
        let success = self.success.as_ref().expect("OUTPUT has a _SUCCESS");
        let named = success["parts"].as_array().expect("_SUCCESS lists parts");
        let names: Vec<&str> = named.iter().filter_map(|part| part["name"].as_str()).collect();
        let there: Vec<&str> = self.parts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, there, "the parts that _SUCCESS names, and those that are there");
        for (index, (part, (name, bytes))) in named.iter().zip(&self.parts).enumerate() {
            assert!(
                name.starts_with(&format!("part-{index:05}.")),
                "part {index} is called {name}"
            );
            assert_eq!(
                part["bytes"].as_u64(),
                Some(bytes.len() as u64),
                "length of {name} in _SUCCESS: {part}"
            );
        }
        assert!(self.others.is_empty(), "other things lie in OUTPUT: {:?}", self.others);
        assert_same_bytes(&self.concatenated(), want, "the parts one after the other");
    }

    /// Checks that nothing is there at all.
    ///
    /// # Panics
    /// Where something is.
    #[track_caller]
    pub fn assert_nothing(&self) {
        let parts: Vec<&str> = self.parts.iter().map(|(name, _)| name.as_str()).collect();
        assert!(
            self.success.is_none() && parts.is_empty() && self.others.is_empty(),
            "OUTPUT holds {parts:?} {:?} {:?}",
            self.success,
            self.others
        );
    }
}
