//! Paths, URLs and patterns that others choose: whatever is accepted as the place of a job, what
//! muster makes below it stays below it.

use muster_platform::inputs::{self, Pattern};
use muster_platform::store::{BlobUrl, is_normal};
use muster_protocol::ids::{
    AttemptId, DeploymentId, Epoch, Generation, JobId, Phase, TaskId, WorkerId,
};
use muster_protocol::names::{self, Names};

/// Reads bytes as a URL, a pattern and ids.
pub fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(url) = text.parse::<BlobUrl>() {
        place(&url);
    }
    if let Some(Ok(asked)) = inputs::of_workers(text) {
        assert!(is_normal(asked.trim_end_matches('/')) || asked.is_empty());
    }
    if let Ok(pattern) = Pattern::of_path(text) {
        assert!(
            pattern.matches(text) || text.is_empty() || text.ends_with('/'),
            "a path means itself"
        );
    }
    if let Ok(pattern) = Pattern::new(text) {
        for path in ["a", "a/b.log", "_x", text] {
            let _ = (pattern.matches(path), pattern.may_match_below(path));
        }
    }
    let (left, right) = text.split_once('\n').unwrap_or((text, text));
    let _ = (
        names::covers(left, right),
        names::is_input_name(left),
        Names::new("muster").may_answer(left),
    );
    if let Ok(id) = text.parse::<WorkerId>() {
        for subject in
            [Names::new("muster").heartbeat(&id), names::of_worker("muster.c.report", &id)]
        {
            assert!(
                !subject.contains(['*', '>', ' '])
                    && subject.split('.').all(|token| !token.is_empty())
            );
            assert_eq!(subject.split('.').count(), 4, "an id is one token");
        }
        let own = BlobUrl::of_worker(&id, &format!("/{right}"));
        assert!(own.is_err() || is_normal(right));
    }
}

fn place(url: &BlobUrl) {
    let again: BlobUrl = url.to_string().parse().expect("what was read, read again");
    assert_eq!(&again, url, "it means the same when it is read again");
    assert!(url.contains(url));
    assert!(
        !url.key().split('/').any(|segment| matches!(segment, "." | "..")),
        "no segment leads elsewhere: {url}"
    );
    let (deployment, job): (DeploymentId, JobId) =
        ("d1".parse().expect("id"), "j1".parse().expect("id"));
    let task = TaskId { phase: Phase::Merge, index: u32::MAX };
    let attempt = AttemptId { task, generation: Generation(1), epoch: Epoch(u64::MAX), nonce: 1 };
    let scratch = url.join(&names::scratch_path(&deployment, &job));
    let made = [
        names::plan_path(1),
        names::splitters_path(Epoch(1), 1),
        names::runs_path(Epoch(1), 1),
        names::run_path(&attempt),
        names::bad_records_path(&attempt),
        names::samples_path(&attempt),
    ];
    for path in made {
        let below = scratch.join(&path);
        assert!(
            scratch.contains(&below) && url.contains(&below) && !below.contains(&scratch),
            "{below}"
        );
        assert_eq!(below.scheme(), url.scheme());
        assert!(below.key().ends_with(&path));
    }
    for path in [names::part_name(7, "txt"), names::quarantine_path(7), names::SUCCESS.to_owned()] {
        let below = url.join(&path);
        assert!(url.contains(&below) && !scratch.contains(&below), "{below}");
    }
}

/// One of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    [
        "/data/in",
        "/data/../in/./x//y/",
        "/",
        "file:///data/in",
        "file://host/x",
        "s3://bucket/a/b/",
        "s3://bucket",
        "s3://bucket//a",
        "s3://bucket/../other",
        "s3://user:secret@bucket/x",
        "memory:///a/b",
        "memory:///../a",
        "worker://w1/data/x",
        "worker://w1/../x",
        "workers:/logs/**/*.{log,txt}",
        "workers:/a/../b",
        "{a,{b,[!c-z]}}/**/?",
        "w1\nmuster.w.*.hb",
        "muster.>\nmuster.w.w1.hb",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
