//! From the letters on the command line to what the kernel sorts by.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use muster_kernel::format::Format;
use muster_kernel::spec::{KeyDef, KeyFlags, SortSpec};

use crate::args::OrderArgs;
use crate::cmd::refuse;
use crate::exit::Exit;

/// What sort(1) takes for `--sort`.
const SORT_WORDS: [&str; 6] =
    ["general-numeric", "human-numeric", "month", "numeric", "random", "version"];

/// Whether an option says what order is meant.
pub(crate) fn is_given(args: &OrderArgs) -> bool {
    let letters = [
        args.numeric,
        args.reverse,
        args.stable,
        args.unique,
        args.zero,
        args.blanks,
        args.fold,
        args.dictionary,
    ];
    let more =
        [args.nonprinting, args.general, args.human, args.month, args.random, args.version_sort];
    !is_auto(args)
        || !args.keys.is_empty()
        || args.separator.is_some()
        || args.sort_word.is_some()
        || letters.into_iter().chain(more).any(|given| given)
}

/// Whether an option is given that only lines have.
pub(crate) fn is_of_lines(args: &OrderArgs) -> bool {
    [args.numeric, args.zero, args.blanks, args.fold, args.dictionary, args.nonprinting]
        .into_iter()
        .any(|given| given)
        || args.separator.is_some()
        || args.sort_word.is_some()
        || args.keys.iter().any(|key| KeyDef::parse_range(key).is_err())
}

/// Whether the format was left to muster.
pub(crate) fn is_auto(args: &OrderArgs) -> bool {
    args.format == "auto"
}

/// The order that the arguments ask for; `auto` stands for the given format.
pub(crate) fn spec(args: &OrderArgs, auto: Format) -> Result<SortSpec, Exit> {
    let word = args.sort_word.as_deref();
    let is_word = |name: &str| word == Some(name);
    if let Some(word) = word.filter(|word| !SORT_WORDS.contains(word)) {
        return Err(Exit::usage(format!(
            "--sort {word:?} is not one of {}",
            SORT_WORDS.join(", ")
        )));
    }
    for (given, letter) in [
        (args.general || is_word("general-numeric"), "-g (--general-numeric-sort)"),
        (args.human || is_word("human-numeric"), "-h (--human-numeric-sort)"),
        (args.month || is_word("month"), "-M (--month-sort)"),
        (args.random || is_word("random"), "-R (--random-sort)"),
        (args.version_sort || is_word("version"), "-V (--version-sort)"),
    ] {
        refuse(given, letter)?;
    }
    let format = format(args, auto)?;
    let keys: Result<Vec<KeyDef>, _> =
        args.keys.iter().map(|text| format.rules().parse_key(text)).collect();
    let spec = SortSpec {
        keys: keys.map_err(|e| Exit::usage(format!("-k: {e}")))?,
        global: KeyFlags {
            numeric: args.numeric || is_word("numeric"),
            reverse: args.reverse,
            ignore_leading_blanks: args.blanks,
            fold_case: args.fold,
            dictionary: args.dictionary,
            nonprinting: args.nonprinting,
        },
        separator: args.separator.as_deref().map(separator).transpose()?,
        stable: args.stable,
        unique: args.unique,
        ..SortSpec::new(format)
    };
    spec.validate().map_err(|e| Exit::usage(e.to_string()))?;
    Ok(spec)
}

fn format(args: &OrderArgs, auto: Format) -> Result<Format, Exit> {
    let terminator = if args.zero { 0 } else { b'\n' };
    match args.format.as_str() {
        "auto" if matches!(auto, Format::Lines(_)) => Ok(Format::lines(terminator)),
        "auto" => Ok(auto),
        name if Format::is_later(name) => Err(crate::exit::not_built(&format!("--format {name}"))),
        other => {
            let format = Format::parse(other, terminator).ok_or_else(|| {
                Exit::usage(format!("--format {other:?} is not one of auto, {}", Format::NAMES))
            })?;
            if args.zero && !matches!(format, Format::Lines(_)) {
                return Err(Exit::usage(
                    "-z (--zero-terminated) is for lines, not for fixed records",
                ));
            }
            Ok(format)
        }
    }
}

fn separator(text: &OsStr) -> Result<u8, Exit> {
    match text.as_bytes() {
        [byte] => Ok(*byte),
        b"\\0" => Ok(0),
        b"\\t" => Ok(b'\t'),
        [] => {
            Err(Exit::usage("-t: the separator is empty; without -t fields begin where blanks end"))
        }
        _ => Err(Exit::usage(format!(
            "-t {text:?}: a separator is one byte, or \\0 for NUL, or \\t"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::argv;
    use clap::Parser;
    use muster_kernel::reference::sort_reference;

    const LINES: &[u8] = b"b=2 x\nA=10 y\na=1\t z\n=\nc,3:1\na:3,2\n10\n9\n 9\nb=2 X\nB=2 x\n\n";

    /// What muster makes of options: the sorted lines, or its refusal.
    fn ours(options: &[&str]) -> Result<Vec<u8>, String> {
        let line =
            ["muster", "sort"].iter().chain(options).chain(&["/none/in", "--output=/none/out"]);
        let args =
            argv::for_clap(line.map(Into::into).collect()).map_err(|exit| format!("{exit:?}"))?;
        let Command::Sort(args) =
            Cli::try_parse_from(args).map_err(|error| error.to_string())?.command
        else {
            return Err("not a sort".to_owned());
        };
        let spec = spec(&args.order, Format::lines(b'\n')).map_err(|exit| format!("{exit:?}"))?;
        sort_reference(&spec, &[LINES.to_vec()]).map_err(|error| error.to_string())
    }

    /// What the system's sort makes of them.
    fn theirs(options: &[&str]) -> Option<Vec<u8>> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("in");
        std::fs::write(&path, LINES).expect("input");
        let sort =
            std::process::Command::new("sort").env("LC_ALL", "C").args(options).arg(&path).output();
        let sort = sort.expect("the system's sort");
        match sort.status.code() {
            Some(0) => Some(sort.stdout),
            // It refuses what it does not know with 2, and a word that an option does not take
            // with 1.
            Some(1 | 2) => None,
            other => panic!("sort {options:?} ended with {other:?}"),
        }
    }

    fn check(options: &[&str]) {
        let (ours, theirs) = (ours(options), theirs(options));
        let shown = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(
            ours.as_ref().ok().map(shown),
            theirs.as_ref().map(shown),
            "{options:?}: refused by us: {:?}, by sort(1): {}",
            ours.as_ref().err(),
            theirs.is_none()
        );
    }

    #[test]
    fn options_mean_what_they_mean_to_sort() {
        for options in [
            "-t=",
            "-t= -k2",
            "-t = -k2,2n",
            "-t: -t:",
            "-t: -t,",
            "-t:t",
            "-r -r",
            "-nrn",
            "-u -u",
            "-unu",
            "-s -s",
            "-rsr",
            "-k1,1 -k1,1",
            "-k 1.2n,1.3",
            "-k1.2,1.3n",
            "-k2 -k1",
            "-k2n -k1r",
            "-k 1n,1d",
            "-nd",
            "-ni",
            "-nf",
            "-nb",
            "-di",
            "-dfi",
            "-k1,1x",
            "-k0",
            "-k1.0",
            "-k1,2.0",
            "-k1,0",
            "-k1,",
            "-k1.",
            "-k",
            "-k-1",
            "-k1,-2",
            "-k+1",
            "-k1nn,2bb",
            "-k1b,1",
            "-k1,1b",
            "-b -k2",
            "-k99999999999999999999",
            "-k2,1",
            "-n -k2",
            "-n -k2r",
            "-r -k2b",
            "-t\\0",
            "-t \\0 -k1",
            "-t\\",
            "--key=2",
            "--key 2",
            "--field-separator==",
            "--field-separator =",
            "--reverse --reverse",
            "--sort=numeric",
            "--sort numeric",
            "--sort=nonsense",
            "--numeric-sort --unique",
            "--unknown",
            "-k2 -t=",
            "-rk2",
            "-rt= -k2",
            "-nt=",
            "-k1f -u",
            "-f -u",
            "-f -s",
            "-z",
            "-zu",
            "-k 1,1,1",
            "-k1;2",
            "-t= -k2.1,2.1 -k1,1r",
            "-ubf",
            "-x",
        ] {
            check(&options.split(' ').collect::<Vec<_>>());
        }
        for options in [
            &["-t", ""][..],
            &["-t", " "],
            &["-k", " 1"],
            &["-k", "2 "],
            &["-k", ""],
            &["-t", "é"],
            &["-t\t", "-k2"],
        ] {
            check(options);
        }
        let many: Vec<String> =
            (1..=500).map(|key| format!("-k{},{}", 501 - key, 501 - key)).collect();
        check(&many.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Options at random, in all the ways in which they can be written.
    #[test]
    fn any_options_mean_what_they_mean_to_sort() {
        const PIECES: [&str; 30] = [
            "-r",
            "-n",
            "-u",
            "-s",
            "-b",
            "-f",
            "-d",
            "-i",
            "-rn",
            "-nr",
            "-fbs",
            "-t=",
            "-t:",
            "-t",
            "=",
            ":",
            "-k1",
            "-k2,2",
            "-k",
            "1.2",
            "2n,3",
            "-k1.2b,2.3r",
            "-k2fd",
            "--reverse",
            "--key=1,1n",
            "--key",
            "-rk2,2",
            "-nt=",
            "-uu",
            "-k1,1i",
        ];
        let mut state = 7_u64;
        let mut next = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..400 {
            let count = 1 + next(5);
            let options: Vec<&str> = (0..count).map(|_| PIECES[next(PIECES.len())]).collect();
            // A piece that no option takes would be a file.
            let takes = |at: usize| at > 0 && ["-t", "-k", "--key"].contains(&options[at - 1]);
            let loose = (0..count).any(|at| !options[at].starts_with('-') && !takes(at));
            // The last one would take the file.
            let open = ["-t", "-k", "--key"].contains(&options[count - 1]);
            if !loose && !open {
                check(&options);
            }
        }
    }
}
