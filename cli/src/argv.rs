//! Reads a command line of `muster sort` and `muster verify` as sort(1) reads its own, and writes
//! it in the one form that clap reads the same way: a value stands in the same argument as its
//! option (`-t=` is `--field-separator==`), a flag that is repeated stands once. Options of sort(1)
//! and of its kin that muster has otherwise are refused with what to use instead.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::args::Cli;
use crate::exit::Exit;

/// Commands that take the letters of sort(1).
const COMMANDS: [&str; 2] = ["sort", "verify"];
const SEPARATOR: &str = "field-separator";
const OUTPUT: &str = "output";

/// An option that `muster sort` lacks, and what to use instead.
struct Elsewhere {
    short: Option<u8>,
    long: &'static str,
    advice: &'static str,
}

const fn elsewhere(short: Option<u8>, long: &'static str, advice: &'static str) -> Elsewhere {
    Elsewhere { short, long, advice }
}

const VERIFY: &str = "whether data is in order tells muster verify PATH..., with the same -k, -t \
    and letters and --format lines (exit code 1 where it is not)";

const ELSEWHERE: [Elsewhere; 13] = [
    elsewhere(Some(b'c'), "check", VERIFY),
    elsewhere(Some(b'C'), "check=quiet", VERIFY),
    elsewhere(
        Some(b'm'),
        "merge",
        "files that are in order already are sorted like any others: leave it out, the result is \
            the same",
    ),
    elsewhere(
        Some(b'S'),
        "buffer-size",
        "use --memory SIZE, like --memory 4GiB (of the whole process)",
    ),
    elsewhere(
        Some(b'T'),
        "temporary-directory",
        "use --data-dir DIR, or set TMPDIR, for what does not fit in memory; --bucket URL says \
            where sorted runs go (else below OUTPUT)",
    ),
    elsewhere(None, "parallel", "use --threads N"),
    elsewhere(
        None,
        "header",
        "a first line is sorted like any other: cut it off before (tail -n +2 FILE) and put it in \
            front afterwards",
    ),
    elsewhere(None, "compress-program", "what is kept meanwhile is not compressed: leave it out"),
    elsewhere(None, "batch-size", "how much is merged at once follows from --memory: leave it out"),
    elsewhere(None, "files0-from", "name folders or patterns as INPUT, like logs/ or 'logs/*.txt'"),
    elsewhere(None, "random-source", "sorting at random (-R) is not built: leave it out"),
    elsewhere(
        None,
        "debug",
        "leave it out; muster verify shows whether the order is the one that was meant",
    ),
    elsewhere(None, "in-place", "name another place with -o; OUTPUT never overlaps INPUT"),
];

/// The command line, ready for clap.
pub(crate) fn for_clap(args: Vec<OsString>) -> Result<Vec<OsString>, Exit> {
    let name = args.get(1).and_then(|name| name.to_str()).filter(|name| COMMANDS.contains(name));
    let Some(name) = name.map(str::to_owned) else { return Ok(args) };
    let cli = Cli::command();
    let Some(command) = cli.find_subcommand(&name) else { return Ok(args) };
    let mut args = args.into_iter();
    let out = args.by_ref().take(2).collect();
    let mut reader =
        Reader { command, sorts: name == "sort", given: BTreeSet::new(), separator: None, out };
    while let Some(arg) = args.next() {
        if arg == "--" {
            reader.out.push(arg);
            reader.out.extend(args.by_ref());
            break;
        }
        reader.argument(arg, &mut args)?;
    }
    Ok(reader.out)
}

struct Reader<'a> {
    command: &'a Command,
    /// Whether it is `muster sort`, which people take for sort(1).
    sorts: bool,
    /// Flags and outputs that were given already.
    given: BTreeSet<OsString>,
    separator: Option<OsString>,
    out: Vec<OsString>,
}

impl Reader<'_> {
    fn argument(
        &mut self,
        arg: OsString,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), Exit> {
        match arg.as_bytes() {
            [b'-', b'-', long @ ..] => {
                let (name, value) = match long.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&long[..at], Some(&long[at + 1..])),
                    None => (long, None),
                };
                self.long(&arg, name, value, rest)
            }
            [b'-', letters @ ..] if !letters.is_empty() => self.cluster(&arg, letters, rest),
            [b'+', b'0'..=b'9' | b'.', ..] if self.sorts => self.obsolete(arg, rest),
            _ => {
                self.out.push(arg);
                Ok(())
            }
        }
    }

    fn long(
        &mut self,
        arg: &OsStr,
        name: &[u8],
        value: Option<&[u8]>,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), Exit> {
        if let Some(known) =
            ELSEWHERE.iter().find(|known| self.sorts && known.long.as_bytes() == name)
        {
            return Err(refusal(known));
        }
        let known = self
            .command
            .get_arguments()
            .find(|known| known.get_long().is_some_and(|l| l.as_bytes() == name));
        match (known, value) {
            (Some(known), None) if takes_value(known) => self.valued(known, arg, rest.next()),
            (Some(known), Some(value)) if takes_value(known) => {
                self.valued(known, arg, Some(OsStr::from_bytes(value).to_owned()))
            }
            (Some(known), None) => {
                self.flag(known, arg);
                Ok(())
            }
            _ => {
                self.out.push(arg.to_owned());
                Ok(())
            }
        }
    }

    /// `-nrk2`: flags, of which the last may take the rest or the next argument as its value.
    fn cluster(
        &mut self,
        arg: &OsStr,
        letters: &[u8],
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), Exit> {
        for (at, letter) in letters.iter().enumerate() {
            if let Some(known) =
                ELSEWHERE.iter().find(|known| self.sorts && known.short == Some(*letter))
            {
                return Err(refusal(known));
            }
            let known = self
                .command
                .get_arguments()
                .find(|known| known.get_short() == Some(char::from(*letter)));
            let Some(known) = known else {
                // clap says that there is no such letter.
                self.out.push(OsString::from_vec([b"-", &letters[at..]].concat()));
                return Ok(());
            };
            if takes_value(known) {
                let value = match &letters[at + 1..] {
                    [] => rest.next(),
                    value => Some(OsStr::from_bytes(value).to_owned()),
                };
                return self.valued(known, arg, value);
            }
            self.flag(known, OsStr::from_bytes(&[b'-', *letter]));
        }
        Ok(())
    }

    /// A flag that is repeated says nothing new.
    fn flag(&mut self, known: &Arg, arg: &OsStr) {
        let once = matches!(known.get_action(), ArgAction::SetTrue);
        if !once || self.given.insert(known.get_id().as_str().into()) {
            self.out.push(arg.to_owned());
        }
    }

    fn valued(&mut self, known: &Arg, arg: &OsStr, value: Option<OsString>) -> Result<(), Exit> {
        let (Some(long), Some(value)) = (known.get_long(), value) else {
            // clap says that the value is missing.
            self.out.push(arg.to_owned());
            return Ok(());
        };
        let mut whole = OsString::from(format!("--{long}="));
        whole.push(&value);
        match long {
            SEPARATOR => match &self.separator {
                Some(before) if *before == value => return Ok(()),
                Some(before) => {
                    return Err(Exit::usage(format!(
                        "-t {before:?} and -t {value:?}: incompatible tabs, for there is one \
                            separator of fields"
                    )));
                }
                None => self.separator = Some(value),
            },
            OUTPUT if !self.given.insert(whole.clone()) => return Ok(()),
            _ => {}
        }
        self.out.push(whole);
        Ok(())
    }

    /// `+POS1 [-POS2]`, as keys were written before there was -k. A file of that name is a file.
    fn obsolete(
        &mut self,
        arg: OsString,
        rest: &mut impl Iterator<Item = OsString>,
    ) -> Result<(), Exit> {
        if std::path::Path::new(&arg).symlink_metadata().is_ok() {
            self.out.push(arg);
            return Ok(());
        }
        let from = arg.to_string_lossy().into_owned();
        let to = rest.next().map(|next| next.to_string_lossy().into_owned());
        let to = to.filter(|to| {
            to.as_bytes().get(1).is_some_and(u8::is_ascii_digit) && to.starts_with('-')
        });
        let written = [Some(from.as_str()), to.as_deref()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" ");
        match as_key(&from[1..], to.as_deref().map(|to| &to[1..])) {
            Some(key) => Err(Exit::usage(format!(
                "{written}: keys are written with -k, this one as -k {key}"
            ))),
            None => Err(Exit::usage(format!(
                "{from}: there is no such file; keys are written with -k, like -k 2,2n"
            ))),
        }
    }
}

/// `F[.C][LETTERS]` from 0, and where the key ends, as -k writes it.
fn as_key(from: &str, to: Option<&str>) -> Option<String> {
    let (field, char, letters) = position(from)?;
    let mut key = (field + 1).to_string();
    if char > 0 {
        key.push_str(&format!(".{}", char + 1));
    }
    key.push_str(letters);
    if let Some(to) = to {
        // The end is the first that is not in the key.
        let (field, char, letters) = position(to)?;
        let end =
            if char == 0 { field.max(1).to_string() } else { format!("{}.{char}", field + 1) };
        key.push_str(&format!(",{end}{letters}"));
    }
    Some(key)
}

fn position(text: &str) -> Option<(u32, u32, &str)> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (field, rest) = text.split_at(digits(text));
    let (char, letters) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("0", rest),
    };
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number < u32::MAX);
    let letters = Some(letters).filter(|letters| letters.bytes().all(|b| b.is_ascii_alphabetic()));
    Some((number(field)?, number(char)?, letters?))
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values() && !arg.is_require_equals_set()
}

fn refusal(known: &Elsewhere) -> Exit {
    let Elsewhere { short, long, advice } = known;
    let letter = short.map(|letter| format!("-{} ", char::from(letter))).unwrap_or_default();
    let long = if letter.is_empty() { format!("--{long}") } else { format!("(--{long})") };
    Exit::usage(format!("muster sort has no {letter}{long}: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expect: Result<&str, &str>) {
        let args = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        match (for_clap(args(line)), expect) {
            (Ok(read), Ok(expected)) => assert_eq!(read, args(expected), "{line}"),
            (Err(exit), Err(expected)) => {
                let text = format!("{exit:?}");
                assert!(text.contains(expected) && text.contains("code: 2"), "{line}: {text}");
            }
            (read, _) => panic!("{line}: {read:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn options_are_read_as_sort_reads_them() {
        for (line, expected) in [
            ("muster sort -t= a -o b", "muster sort --field-separator== a --output=b"),
            ("muster sort -t = a -ob", "muster sort --field-separator== a --output=b"),
            ("muster sort -t - a", "muster sort --field-separator=- a"),
            ("muster sort -t -n a", "muster sort --field-separator=-n a"),
            ("muster sort -t: -t: -t : a", "muster sort --field-separator=: a"),
            ("muster sort -r -r -nrn --reverse a", "muster sort -r -n a"),
            ("muster sort -u -u -uz a", "muster sort -u -z a"),
            ("muster sort -rk1,1 -k1,1 --key 2n", "muster sort -r --key=1,1 --key=1,1 --key=2n"),
            ("muster sort -k -1 a", "muster sort --key=-1 a"),
            ("muster sort -nt, -k2", "muster sort -n --field-separator=, --key=2"),
            ("muster sort a -o b -o b", "muster sort a --output=b"),
            ("muster sort a -o b -o c", "muster sort a --output=b --output=c"),
            ("muster sort --local a", "muster sort --local a"),
            ("muster sort --local=2 --memory 1G", "muster sort --local=2 --memory=1G"),
            ("muster sort -rXn a", "muster sort -r -Xn a"),
            ("muster sort a - -- -k -r -r", "muster sort a - -- -k -r -r"),
            ("muster sort a -k", "muster sort a -k"),
            ("muster sort --nonsense a", "muster sort --nonsense a"),
            ("muster verify -t= -r -r p", "muster verify --field-separator== -r p"),
            ("muster worker -c -r -r", "muster worker -c -r -r"),
        ] {
            check(line, Ok(expected));
        }
    }

    #[test]
    fn what_muster_has_otherwise_is_refused_with_what_to_use() {
        for (line, expected) in [
            ("muster sort -c a", "-c (--check): whether data is in order tells muster verify"),
            ("muster sort --check=silent a", "muster verify"),
            ("muster sort -nC a", "muster verify"),
            ("muster sort -m a b", "-m (--merge)"),
            ("muster sort -S 1G a", "use --memory SIZE"),
            ("muster sort -S50% a", "use --memory SIZE"),
            ("muster sort -T /tmp a", "use --data-dir DIR"),
            ("muster sort --temporary-directory=/x a", "TMPDIR"),
            ("muster sort --parallel=4 a", "--parallel: use --threads N"),
            ("muster sort --header a", "tail -n +2"),
            ("muster sort -t: -t, a", "incompatible tabs"),
            ("muster sort +1 -2 a", "+1 -2: keys are written with -k, this one as -k 2,2"),
            ("muster sort +1.2n -3.1 a", "as -k 2.3n,4.1"),
            ("muster sort +0r a", "as -k 1r"),
            ("muster sort +99999999999999 a", "like -k 2,2n"),
        ] {
            check(line, Err(expected));
        }
    }

    #[test]
    fn bytes_that_are_no_text_pass() {
        let file = OsString::from_vec(vec![b'f', 0xFF]);
        let args: Vec<OsString> = vec!["muster".into(), "sort".into(), file.clone(), "-r".into()];
        assert_eq!(for_clap(args.clone()).expect("read"), args);
    }
}
