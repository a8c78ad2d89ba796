//! From the letters on the command line to what the kernel sorts by.

use muster_kernel::record::Format;
use muster_kernel::spec::{KeyDef, KeyFlags, SortSpec};

use crate::args::OrderArgs;
use crate::cmd::refuse;
use crate::exit::Exit;

/// Formats that the design names and that are not built yet.
const LATER_FORMATS: [&str; 4] = ["csv", "tsv", "jsonl", "parquet"];

/// Whether the format was left to muster.
pub(crate) fn is_auto(args: &OrderArgs) -> bool {
    args.format == "auto"
}

/// The order that the arguments ask for; `auto` stands for the given format.
pub(crate) fn spec(args: &OrderArgs, auto: Format) -> Result<SortSpec, Exit> {
    for (given, letter) in [
        (args.general, "-g (--general-numeric-sort)"),
        (args.human, "-h (--human-numeric-sort)"),
        (args.month, "-M (--month-sort)"),
        (args.random, "-R (--random-sort)"),
        (args.version_sort, "-V (--version-sort)"),
    ] {
        refuse(given, letter)?;
    }
    let format = format(args, auto)?;
    let keys: Result<Vec<KeyDef>, _> = args.keys.iter().map(|text| KeyDef::parse(text, &format)).collect();
    let spec = SortSpec {
        keys: keys.map_err(|e| Exit::usage(format!("-k: {e}")))?,
        global: KeyFlags {
            numeric: args.numeric,
            reverse: args.reverse,
            ignore_leading_blanks: args.blanks,
            fold_case: args.fold,
            dictionary: args.dictionary,
            nonprinting: args.nonprinting,
        },
        separator: args.separator.as_deref().map(separator).transpose()?,
        stable: args.stable,
        unique: args.unique,
        format,
    };
    spec.validate().map_err(|e| Exit::usage(e.to_string()))?;
    Ok(spec)
}

fn format(args: &OrderArgs, auto: Format) -> Result<Format, Exit> {
    let lines = || Format::Lines { terminator: if args.zero { 0 } else { b'\n' } };
    match args.format.as_str() {
        "auto" if matches!(auto, Format::Lines { .. }) => Ok(lines()),
        "auto" => Ok(auto),
        "lines" => Ok(lines()),
        name if LATER_FORMATS.contains(&name) => Err(crate::exit::not_built(&format!("--format {name}"))),
        other => {
            let len = other.strip_prefix("fixed:").and_then(|len| len.parse().ok()).filter(|len| *len > 0);
            let len = len.ok_or_else(|| {
                Exit::usage(format!("--format {other:?} is not one of auto, lines, fixed:LEN (LEN in bytes)"))
            })?;
            if args.zero {
                return Err(Exit::usage("-z (--zero-terminated) is for lines, not for fixed records"));
            }
            Ok(Format::Fixed { len })
        }
    }
}

fn separator(text: &str) -> Result<u8, Exit> {
    match text.as_bytes() {
        [byte] => Ok(*byte),
        b"\\0" => Ok(0),
        b"\\t" => Ok(b'\t'),
        [] => Err(Exit::usage("-t: the separator is empty")),
        _ => Err(Exit::usage(format!("-t {text:?}: a separator is one byte"))),
    }
}
