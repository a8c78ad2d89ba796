//! What `--format auto` refuses: input that is not plain lines, told by its name or its first bytes. Its bytes would sort, but into something that nobody can read.

use muster_common::plan::{BadInputs, PinnedObject};
use muster_common::store::{Access, BlobUrl, Stores, read_whole};
use muster_common::{Error, Result};

use super::offers::Offered;

/// Objects whose first bytes are looked at; names are looked at in all.
const LOOKED_AT_MAX: usize = 256;
const MAGIC_BYTES: u64 = 16;

/// Extensions, in lower case, and what they stand for.
const EXTENSIONS: [(&str, &str); 19] = [
    ("gz", "gzip-compressed"),
    ("tgz", "gzip-compressed"),
    ("bz2", "bzip2-compressed"),
    ("xz", "xz-compressed"),
    ("zst", "zstd-compressed"),
    ("lz4", "lz4-compressed"),
    ("sz", "snappy-compressed"),
    ("snappy", "snappy-compressed"),
    ("br", "brotli-compressed"),
    ("zip", "a zip archive"),
    ("tar", "a tar archive"),
    ("parquet", "Parquet"),
    ("orc", "ORC"),
    ("avro", "Avro"),
    ("csv", "CSV"),
    ("tsv", "TSV"),
    ("jsonl", "JSON lines"),
    ("ndjson", "JSON lines"),
    ("json", "JSON"),
];

/// First bytes that no line of text begins with, and what they stand for.
const MAGIC: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ\0", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"\x04\x22\x4d\x18", "lz4-compressed"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1\x15", "Parquet"),
    (b"Obj\x01", "Avro"),
];

/// Looks at names and first bytes. One that cannot be read is passed over where such objects may be left out.
///
/// # Errors
/// `Invalid`, naming the object and what it seems to be; else as a read.
pub(super) async fn refuse_other_formats(
    stores: &Stores,
    objects: &[PinnedObject],
    unreadable: BadInputs,
    offered: &Offered,
) -> Result<()> {
    for object in objects {
        let url: BlobUrl = object.url.parse()?;
        if let Some(what) = by_name(url.name()) {
            return Err(refusal(&url, what));
        }
    }
    for object in objects.iter().filter(|object| object.bytes > 0).take(LOOKED_AT_MAX) {
        let url: BlobUrl = object.url.parse()?;
        let read = match offered.heads.get(&object.url) {
            Some(head) => head.clone().map(Into::into),
            None => {
                let store = stores.open(&url).await?;
                let start = 0..object.bytes.min(MAGIC_BYTES);
                read_whole(|| store.read(url.key(), start.clone(), Access::Cached)).await
            }
        };
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(_) if unreadable == BadInputs::Skip => continue,
            Err(error) => return Err(error.at(&url)),
        };
        if let Some(what) = by_magic(&bytes) {
            return Err(refusal(&url, what));
        }
    }
    Ok(())
}

fn by_name(name: &str) -> Option<&'static str> {
    let extension = name.rsplit_once('.')?.1.to_ascii_lowercase();
    EXTENSIONS.iter().find(|(known, _)| *known == extension).map(|(_, what)| *what)
}

fn by_magic(bytes: &[u8]) -> Option<&'static str> {
    MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, what)| *what)
}

fn refusal(url: &BlobUrl, what: &str) -> Error {
    Error::invalid(format!(
        "INPUT {url} seems to be {what}, which is not built yet; to sort its lines as plain bytes, say --format lines"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_told_by_name_and_by_first_bytes() {
        for (name, expected) in [
            ("a.txt", None),
            ("gz", None),
            ("a.log", None),
            ("a.GZ", Some("gzip-compressed")),
            ("x.y.parquet", Some("Parquet")),
            ("a.csv", Some("CSV")),
        ] {
            assert_eq!(by_name(name), expected, "{name}");
        }
        for (bytes, expected) in [
            (&b"plain"[..], None),
            (b"", None),
            (b"\x1f\x8b\x08\0", Some("gzip-compressed")),
            (b"PAR1\x15", Some("Parquet")),
            (b"PAR1S", None),
        ] {
            assert_eq!(by_magic(bytes), expected, "{bytes:?}");
        }
    }
}
