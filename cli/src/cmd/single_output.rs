//! OUTPUT is a folder of parts. What was meant as one file, or as standard output, is refused with
//! what to type instead, before a folder of that name stands there.

use std::path::Path;

use crate::cmd::STANDARD;
use crate::exit::Exit;

/// Extensions of files that sorted data is written to.
const EXTENSIONS: [&str; 32] = [
    "arrow", "avro", "bin", "bz2", "csv", "dat", "data", "gz", "ini", "json", "jsonl", "list",
    "log", "lz4", "md", "ndjson", "orc", "out", "parquet", "psv", "sort", "sorted", "sql", "tab",
    "text", "tmp", "tsv", "txt", "xml", "xz", "zip", "zst",
];

/// Refuses an OUTPUT that is no folder.
pub(crate) fn refuse(output: &str) -> Result<(), Exit> {
    if output == STANDARD {
        return Err(Exit::usage(
            "-o -: the sorted data cannot go to standard output in this version: it is a folder of \
                parts. Write it into one and read them in order: \
             -o DIR/, then cat DIR/part-* (a folder that is really named - is ./-)",
        ));
    }
    let path = output.strip_prefix("file://").unwrap_or(output);
    let local = !path.contains("://");
    let place = Path::new(path);
    if local && place.exists() && !place.is_dir() {
        return Err(Exit::usage(format!(
            "-o {output}: that is a file, and OUTPUT is a folder of parts in this version. Write \
                into another place and read the parts in order: {}",
            instead(output)
        )));
    }
    if looks_like_a_file(path) && !(local && place.is_dir()) {
        return Err(Exit::usage(format!(
            "-o {output}: that looks like a file, and OUTPUT is a folder of parts in this version. \
                Write into a folder and read the parts in order: {}; \
             if a folder of that name is meant: -o {output}/",
            instead(output)
        )));
    }
    Ok(())
}

/// What makes the file that was meant.
fn instead(output: &str) -> String {
    let stem = output
        .rsplit_once('.')
        .filter(|_| looks_like_a_file(output))
        .map_or(output, |(stem, _)| stem);
    let folder = format!("{}-sorted", stem.trim_end_matches('/'));
    if output.contains("://") {
        format!("-o {folder}/, the parts there are {folder}/part-00000 and so on")
    } else {
        format!("-o {folder}/, then cat {folder}/part-* > {output}")
    }
}

/// Whether the last name in it has an extension of a file, and no slash behind it.
fn looks_like_a_file(path: &str) -> bool {
    let name = match path.split_once("://") {
        // A bucket is no file, whatever its name.
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, key)| key),
        None => path,
    };
    let name = name.rsplit('/').next().unwrap_or_default();
    let extension =
        name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).map(|(_, extension)| extension);
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(output: &str, expect: Result<(), &str>) {
        match (refuse(output), expect) {
            (Ok(()), Ok(())) => {}
            (Err(exit), Err(expected)) => {
                let text = format!("{exit:?}");
                assert!(text.contains(expected) && text.contains("code: 2"), "{output}: {text}");
            }
            (refused, _) => panic!("{output}: {refused:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn what_looks_like_a_file_is_refused_with_what_to_type() {
        for output in [
            "/none/out",
            "out/",
            "out.txt/",
            "/none/v1.2",
            "a.b/c",
            ".txt",
            "..",
            ".",
            "s3://b.csv",
            "s3://b/x",
            "s3://b/out.txt/",
        ] {
            check(output, Ok(()));
        }
        check("-", Err("cat DIR/part-*"));
        check("./-", Ok(()));
        check(
            "out.txt",
            Err(
                "-o out-sorted/, then cat out-sorted/part-* > out.txt; if a folder of that name is \
                    meant: -o out.txt/",
            ),
        );
        check("/none/x.CSV", Err("-o /none/x-sorted/"));
        check("file:///none/x.gz", Err("looks like a file"));
        check("s3://b/out.parquet", Err("-o s3://b/out-sorted/, the parts there are"));
    }

    #[test]
    fn what_is_there_decides() {
        let dir = tempfile::tempdir().expect("dir");
        let (file, folder) = (dir.path().join("plain"), dir.path().join("folder.txt"));
        std::fs::write(&file, "x").expect("file");
        std::fs::create_dir(&folder).expect("folder");
        check(&folder.to_string_lossy(), Ok(()));
        check(&file.to_string_lossy(), Err("that is a file"));
        check(&format!("file://{}", file.display()), Err("that is a file"));
        check("/dev/null", Err("that is a file"));
    }
}
