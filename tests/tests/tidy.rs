//! What the repository's files keep to and no other tool says:
//!
//! - Lines of Rust and Markdown have at most 100 columns (characters, not bytes). In Markdown rows
//!   of tables are exempt, and lines that are one link or URL.
//! - No tabs, no blanks at the ends of lines.
//! - What Markdown links to is there, and so is each file of this repository that it names in back
//!   quotes: as seen from the root, from the document, or as the end of an existing file's path.
//! - Rust files have at most 700 lines and functions at most 100. What is longer stands in a list
//!   here, which can only shrink.
//!
//! Each rule is tried on a fault first. Looked at are the files of the root, and those of the
//! crates, `deploy` and `docs`: what else a checkout holds (`target`, dot folders) is passed over.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const COLUMNS_MAX: usize = 100;
const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 100;

/// Files that are longer, and how long each may be: with some room, so that a change of a line is
/// not one here, too.
const LONG_FILES: &[(&str, usize)] = &[
    ("common/platform/src/claim/hold.rs", 800),
    ("coordinator/src/driver/mod.rs", 720),
    ("coordinator/src/job/tests/cases.rs", 960),
    ("tests/src/sim/checker.rs", 780),
    ("tests/src/sim/claims.rs", 920),
    ("tests/src/sim/coordinator.rs", 900),
    ("tests/src/sim/store.rs", 750),
    ("tests/src/sim/world.rs", 980),
    ("worker/src/tasks/tests.rs", 1110),
];

/// Functions that are longer, and how long each may be.
const LONG_FUNCTIONS: &[(&str, usize)] = &[
    ("cli/src/cmd/drill/mod.rs: run", 115),
    ("common/protocol/src/golden.rs: to_the_leader", 130),
    ("coordinator/src/job/tests/world.rs: perform_on_store", 120),
    ("tests/src/sim/world.rs: new", 130),
];

/// Files of text that people write.
const TEXT: &[&str] = &["rs", "md", "toml", "yaml", "sh", "py", "conf", "env", "service"];

/// Ends of names by which words in Markdown's back quotes are taken for files of this repository.
const NAMED: &[&str] = &["rs", "md", "toml", "yaml", "sh", "py", "service"];

#[test]
fn lines_have_at_most_a_hundred_columns() {
    let long = format!("a\n{}\n| {0}\n{} b", "ä".repeat(COLUMNS_MAX), "b".repeat(COLUMNS_MAX));
    assert_eq!(long_lines("a.rs", &long), ["a.rs:3: 102 columns", "a.rs:4: 102 columns"]);
    assert_eq!(long_lines("a.md", &long), ["a.md:4: 102 columns"]);
    let url = format!("  https://example.com/{}", "c".repeat(COLUMNS_MAX));
    assert!(long_lines("a.md", &url).is_empty());
    assert_eq!(long_lines("a.rs", &url).len(), 1);

    holds(&Tree::read().of(&["rs", "md"], long_lines));
}

#[test]
fn blanks_are_spaces_within_lines() {
    let found = blanks("a.sh", "a\n\tb\nc \n d\n");
    assert_eq!(found, ["a.sh:2: a tab", "a.sh:3: a blank at the end"]);

    holds(&Tree::read().of(TEXT, blanks));
}

#[test]
fn what_documents_name_is_there() {
    let tree = Tree {
        root: PathBuf::from("/nowhere"),
        files: ["docs/A.md", "b/src/c/d.rs"].map(str::to_owned).to_vec(),
    };
    let text = "[x](A.md#y), [y](../b/src/c/d.rs), [z](https://example.com/z.md), [v](src/c/d.rs)\n\
                `c/d.rs`, `b/src/c/d.rs`, `/etc/e.toml`, `*/e.rs`, `e.rs`, `run\n\
                x/e.sh -a` `d/d.rs`\n\
                \n\
                \x20   indented/e.rs `\n\
                \n\
                ```sh\n`code/e.rs\n```\n\
                \n\
                `c.d/d.rs`\n";
    let expected = ["1: src/c/d.rs", "3: x/e.sh", "3: d/d.rs", "11: c.d/d.rs"];
    let expected = expected.map(|found| format!("docs/B.md:{found} is not there"));
    assert_eq!(tree.missing("docs/B.md", text), expected);

    let tree = Tree::read();
    holds(&tree.of(&["md"], |path, text| tree.missing(path, text)));
}

/// Words of the field stand for one thing each: the types that the glossary names are declared, and
/// once, unless it says where.
#[test]
fn the_glossary_names_types_that_are_there_once() {
    let check = |row: &str, declared: &[(&str, &str)], expected: &[&str]| {
        let declared: Vec<(String, String)> =
            declared.iter().map(|&(name, path)| (name.to_owned(), path.to_owned())).collect();
        assert_eq!(misnamed(row, &declared), expected);
    };
    let two = [("Entry", "a/x.rs"), ("Entry", "b/y.rs"), ("Job", "c.rs")];
    check("| job | what | `Job` |", &two, &[]);
    check("| entry | what | `Entry` |", &two, &["entry: Entry is declared 2 times"]);
    check("| entry | what | `Entry` in `b/y.rs` |", &two, &[]);
    check("| entry | what | `Entry` in `b/z.rs` |", &two, &["entry: Entry is declared 0 times"]);
    check("| run | what | |", &two, &[]);

    let tree = Tree::read();
    let mut declared = Vec::new();
    tree.each(&["rs"], |path, text| {
        if !path.contains("test") {
            declared.extend(types(text).map(|name| (name.to_owned(), path.to_owned())));
        }
    });
    let mut rows = Vec::new();
    tree.each(&["md"], |path, text| {
        let glossary = text.split("## Glossary\n").nth(1).filter(|_| path == "ARCHITECTURE.md");
        let table = glossary.unwrap_or_default().lines().skip(3);
        rows.extend(table.take_while(|line| line.starts_with('|')).map(str::to_owned));
    });
    assert!(rows.len() > 15, "the glossary was not found: {rows:?}");
    let found: Vec<String> = rows.iter().flat_map(|row| misnamed(row, &declared)).collect();
    holds(&found);
}

/// An image is built of what `.dockerignore` lets in: a target that a manifest names elsewhere
/// would be missing there.
#[test]
fn what_manifests_name_is_let_into_images() {
    let strays = |manifest: &str, text: &str, let_in: &[&str]| -> Vec<String> {
        let folder = manifest.rsplit_once('/').map_or("", |(folder, _)| folder);
        let paths = text.split("path = \"").skip(1).filter_map(|rest| rest.split('"').next());
        let paths = paths.map(|path| joined(folder, path));
        let out = |path: &String| !let_in.contains(&path.split('/').next().unwrap_or_default());
        paths.filter(out).map(|path| format!("{manifest}: {path} is not let in")).collect()
    };
    let text = "a = { path = \"b\" }\npath = \"../c/d.rs\"\n";
    assert_eq!(strays("a/Cargo.toml", text, &["a"]), ["a/Cargo.toml: c/d.rs is not let in"]);
    assert!(strays("a/Cargo.toml", text, &["a", "c"]).is_empty());

    let tree = Tree::read();
    let ignore = fs::read_to_string(tree.root.join(".dockerignore")).expect(".dockerignore");
    let let_in: Vec<&str> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let manifests = |path: &str| path.ends_with("Cargo.toml") && !path.starts_with("tests/fuzz");
    let mut found = Vec::new();
    tree.each(&["toml"], |path, text| {
        if manifests(path) {
            found.extend(strays(path, text, &let_in));
        }
    });
    holds(&found);
}

#[test]
fn files_have_at_most_seven_hundred_lines() {
    let tree = Tree::read();
    let mut files = Vec::new();
    tree.each(&["rs"], |path, text| files.push((path.to_owned(), text.lines().count())));
    holds(&beyond(FILE_LINES_MAX, &files, LONG_FILES));
}

#[test]
fn functions_have_at_most_a_hundred_lines() {
    let text = "impl A {\n    pub(super) const fn b(\n        c: D,\n    ) -> E {\n\
                \x20       f()\n    }\n    fn g(\n    );\n}\n\
                async fn h() {\n    }\n    ;\n}\nfn i() {}\n// fn j() {\n";
    let expected = [("a.rs: b".to_owned(), 5), ("a.rs: h".to_owned(), 4)];
    assert_eq!(functions("a.rs", text), expected);

    let mut all = Vec::new();
    Tree::read().each(&["rs"], |path, text| all.extend(functions(path, text)));
    holds(&beyond(FUNCTION_LINES_MAX, &all, LONG_FUNCTIONS));
}

#[test]
fn exceptions_only_shrink() {
    let found = [("a", 9), ("b", 11), ("c", 12), ("d", 13), ("e", 10)];
    let found = found.map(|(what, lines)| (what.to_owned(), lines));
    assert!(beyond(13, &found, &[]).is_empty());
    let listed = [("b", 12), ("c", 11), ("d", 15), ("e", 11), ("f", 15)];
    assert_eq!(
        beyond(10, &found, &listed),
        [
            "c: 12 lines, more than the 11 of its exception",
            "d: 13 lines: let its exception say so, not 15",
            "e: no exception is needed",
            "f: no exception is needed",
        ]
    );
    assert_eq!(beyond(12, &found, &[]), ["d: 13 lines, more than 12"]);
}

/// Fails with a list of what was found.
fn holds(found: &[String]) {
    assert!(found.is_empty(), "{} found:\n{}", found.len(), found.join("\n"));
}

/// What a text of Rust declares as a type.
fn types(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let words = line.split_whitespace();
        let mut words = words.skip_while(|word| word.starts_with("pub"));
        let kind = words.next()?;
        let name = words.next().filter(|_| ["struct", "enum", "trait"].contains(&kind))?;
        name.split(|c: char| !c.is_alphanumeric()).next().filter(|name| !name.is_empty())
    })
}

/// What a row of the glossary says of a type and is not so.
fn misnamed(row: &str, declared: &[(String, String)]) -> Vec<String> {
    let cells: Vec<&str> = row.split('|').map(str::trim).collect();
    let (term, named) = (cells.get(1).unwrap_or(&""), cells.get(3).unwrap_or(&""));
    let mut quoted = named.split('`').skip(1).step_by(2);
    let Some(name) = quoted.next() else { return Vec::new() };
    let path = quoted.next();
    let is_meant = |(known, at): &&(String, String)| known == name && path.is_none_or(|p| p == at);
    match declared.iter().filter(is_meant).count() {
        1 => Vec::new(),
        times => vec![format!("{term}: {name} is declared {times} times")],
    }
}

/// The repository's files, by their paths below the root.
struct Tree {
    root: PathBuf,
    files: Vec<String>,
}

impl Tree {
    fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned();
        let mut tree = Self { root, files: Vec::new() };
        tree.enter("");
        tree.files.sort();
        for crates in [
            "cli",
            "common/platform",
            "common/protocol",
            "coordinator",
            "kernel",
            "tests",
            "worker",
        ] {
            let manifest = format!("{crates}/Cargo.toml");
            assert!(tree.files.contains(&manifest), "{manifest} was not found");
        }
        tree
    }

    fn enter(&mut self, folder: &str) {
        for entry in fs::read_dir(self.root.join(folder)).expect("a folder can be listed") {
            let entry = entry.expect("an entry");
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            let kind = entry.file_type().expect("a kind");
            let ours = !folder.is_empty()
                || ["common", "deploy", "docs", "examples"].contains(&name.as_str())
                || entry.path().join("Cargo.toml").exists();
            if kind.is_file() {
                self.files.push(path);
            } else if kind.is_dir() && ours && !name.starts_with('.') && name != "target" {
                self.enter(&path);
            }
        }
    }

    /// Calls `look` with path and text of each file of these kinds.
    fn each(&self, kinds: &[&str], mut look: impl FnMut(&str, &str)) {
        for path in self.files.iter().filter(|path| is_of(path, kinds)) {
            let text = fs::read_to_string(self.root.join(path));
            look(path, &text.unwrap_or_else(|error| panic!("{path}: {error}")));
        }
    }

    /// What a rule finds in all files of these kinds.
    fn of(&self, kinds: &[&str], rule: impl Fn(&str, &str) -> Vec<String>) -> Vec<String> {
        let mut found = Vec::new();
        self.each(kinds, |path, text| found.extend(rule(path, text)));
        found
    }

    /// Files that a document links to or names and that do not exist.
    fn missing(&self, document: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (first, paragraph) in paragraphs(text) {
            let line = |at: usize| first + paragraph[..at].matches('\n').count();
            for (at, target) in links(&paragraph) {
                if !self.has(&joined(folder, target)) {
                    found.push(format!("{document}:{}: {target} is not there", line(at)));
                }
            }
            for (at, path) in named(&paragraph) {
                let end = format!("/{path}");
                let there = self.has(path)
                    || self.has(&joined(folder, path))
                    || self.files.iter().any(|file| file.ends_with(&end));
                if !there {
                    found.push(format!("{document}:{}: {path} is not there", line(at)));
                }
            }
        }
        found
    }

    fn has(&self, path: &str) -> bool {
        self.files.iter().any(|file| file == path) || self.root.join(path).exists()
    }
}

fn is_of(path: &str, kinds: &[&str]) -> bool {
    path.rsplit_once('.').is_some_and(|(_, kind)| kinds.contains(&kind))
}

/// `path` as seen from `folder`, without `.` and `..`.
fn joined(folder: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in folder.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The paragraphs of a document that are no code, each with the number of its first line.
fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let (mut all, mut paragraph, mut fenced) = (Vec::new(), String::new(), false);
    let mut first = 1;
    for (index, line) in text.lines().chain([""]).enumerate() {
        let fence = line.trim_start().starts_with("```");
        let code = fenced || fence || (line.starts_with("    ") && paragraph.is_empty());
        fenced ^= fence;
        if code || line.is_empty() {
            if !paragraph.is_empty() {
                all.push((first, std::mem::take(&mut paragraph)));
            }
        } else {
            if paragraph.is_empty() {
                first = index + 1;
            }
            paragraph.push_str(line);
            paragraph.push('\n');
        }
    }
    all
}

/// Files that a paragraph links to, each with its place in it: `[x](path)` and `[x](path#part)`.
fn links(paragraph: &str) -> Vec<(usize, &str)> {
    let ends = paragraph.match_indices("](").filter_map(|(at, _)| {
        let target = paragraph[at + 2..].split([')', '#']).next()?;
        Some((at, target))
    });
    ends.filter(|(_, target)| !target.is_empty() && !target.contains(':')).collect()
}

/// Words in back quotes that look like files of this repository, each with its place.
fn named(paragraph: &str) -> Vec<(usize, &str)> {
    let mut at = 0;
    let mut all = Vec::new();
    for (number, span) in paragraph.split('`').enumerate() {
        for word in span.split_whitespace().filter(|_| number % 2 == 1) {
            let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
            if word.contains('/')
                && !word.starts_with('/')
                && word.chars().all(plain)
                && is_of(word, NAMED)
            {
                all.push((at + span.find(word).unwrap_or(0), word));
            }
        }
        at += span.len() + 1;
    }
    all
}

fn long_lines(path: &str, text: &str) -> Vec<String> {
    let exempt = |line: &str| {
        let line = line.trim().trim_start_matches("- ");
        let is_link = !line.contains(' ') && (line.contains("://") || line.contains("]("));
        path.ends_with(".md") && (line.starts_with('|') || is_link)
    };
    let lines = text.lines().enumerate().map(|(index, line)| (index, line, line.chars().count()));
    lines
        .filter(|(_, line, columns)| *columns > COLUMNS_MAX && !exempt(line))
        .map(|(index, _, columns)| format!("{path}:{}: {columns} columns", index + 1))
        .collect()
}

fn blanks(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.contains('\t') {
            found.push(format!("{path}:{}: a tab", index + 1));
        } else if line.ends_with(char::is_whitespace) {
            found.push(format!("{path}:{}: a blank at the end", index + 1));
        }
    }
    found
}

/// The functions of a file as rustfmt lays them out, each with its lines from `fn` to the brace
/// that closes its body. Those of one line are left out, and those without a body.
fn functions(path: &str, text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut all = Vec::new();
    for (begin, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let Some(name) = function_name(code) else { continue };
        let indent = &line[..line.len() - code.len()];
        let level =
            |at: usize| lines[at].strip_prefix(indent).filter(|code| !code.starts_with(' '));
        let opens = (begin..lines.len())
            .find(|at| level(*at).is_some_and(|code| code.ends_with(['{', '}', ';'])));
        if let Some(opens) = opens.filter(|at| lines[*at].ends_with('{'))
            && let Some(closes) = (opens..lines.len()).find(|at| level(*at) == Some("}"))
        {
            all.push((format!("{path}: {name}"), closes + 1 - begin));
        }
    }
    all
}

/// The name of the function that begins in a line without its indentation.
fn function_name(code: &str) -> Option<&str> {
    let mut rest = code;
    if let Some(after) = rest.strip_prefix("pub") {
        let after = if after.starts_with('(') { after.split_once(')')?.1 } else { after };
        rest = after.strip_prefix(' ')?;
    }
    let words = ["async ", "const ", "unsafe ", "extern \"C\" "];
    while let Some(after) = words.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = after;
    }
    rest.strip_prefix("fn ")?.split(['(', '<']).next()
}

/// What is longer than allowed and no exception, and exceptions that allow far more than there is.
fn beyond(max: usize, found: &[(String, usize)], exceptions: &[(&str, usize)]) -> Vec<String> {
    let exceptions: BTreeMap<&str, usize> = exceptions.iter().copied().collect();
    let mut unused = exceptions.clone();
    let mut wrong = Vec::new();
    for (what, lines) in found.iter().filter(|(_, lines)| *lines > max) {
        unused.remove(what.as_str());
        match exceptions.get(what.as_str()) {
            None => wrong.push(format!("{what}: {lines} lines, more than {max}")),
            Some(stated) if stated < lines => {
                wrong.push(format!(
                    "{what}: {lines} lines, more than the {stated} of its exception"
                ));
            }
            Some(stated) if *stated > lines + max / 10 => {
                wrong
                    .push(format!("{what}: {lines} lines: let its exception say so, not {stated}"));
            }
            Some(_) => {}
        }
    }
    wrong.extend(unused.keys().map(|what| format!("{what}: no exception is needed")));
    wrong
}
