//! The oracle is what sort(1) does: random inputs under random options go through the system's
//! `sort` (GNU, `LC_ALL=C`) as well.

#[path = "support/specs.rs"]
mod specs;

use std::io::Write;
use std::process::{Command, Stdio};

use muster_kernel::format::{Format, Frame};
use muster_kernel::reference::sort_reference;
use muster_kernel::spec::{FieldKey, KeyDef, KeyFlags, SortSpec};
use proptest::prelude::*;

fn letters(flags: &KeyFlags, blanks: bool) -> String {
    let letters = [
        (flags.numeric, 'n'),
        (flags.reverse, 'r'),
        (blanks, 'b'),
        (flags.fold_case, 'f'),
        (flags.dictionary, 'd'),
        (flags.nonprinting, 'i'),
    ];
    letters.iter().filter_map(|&(set, letter)| set.then_some(letter)).collect()
}

fn key_text(key: &FieldKey) -> String {
    let start = format!(
        "{}.{}{}",
        key.start_field,
        key.start_char,
        letters(&key.flags, key.flags.ignore_leading_blanks)
    );
    match key.end {
        None => start,
        Some((field, char)) => {
            format!("{start},{field}.{char}{}", if key.end_ignore_blanks { "b" } else { "" })
        }
    }
}

fn arguments(spec: &SortSpec) -> Vec<String> {
    let mut arguments = Vec::new();
    let global = letters(&spec.global, spec.global.ignore_leading_blanks);
    if !global.is_empty() {
        arguments.push(format!("-{global}"));
    }
    for key in &spec.keys {
        let KeyDef::Field(field) = key else { unreachable!("a spec for lines") };
        let text = key_text(field);
        assert_eq!(FieldKey::parse(&text).as_ref(), Ok(field), "{text}");
        arguments.push(format!("-k{text}"));
    }
    if let Some(separator) = spec.separator {
        arguments.push(format!("-t{}", char::from(separator)));
    }
    arguments.extend(spec.stable.then(|| "-s".to_string()));
    arguments.extend(spec.unique.then(|| "-u".to_string()));
    arguments.extend((spec.format == Format::lines(0)).then(|| "-z".to_string()));
    arguments
}

fn system_sort(arguments: &[String], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("sort")
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test needs the system's `sort` (coreutils)");
    // The inputs are smaller than a pipe, so writing first cannot block.
    child.stdin.take().expect("a pipe").write_all(input).expect("sort reads its input");
    let output = child.wait_with_output().expect("sort ends");
    assert!(output.status.success(), "sort {arguments:?}");
    output.stdout
}

fn case() -> impl Strategy<Value = (SortSpec, Vec<u8>)> {
    specs::lines_spec().prop_flat_map(|spec| {
        // The system's sort keeps all of them.
        let spec = SortSpec { top: None, ..spec };
        let Frame::Terminated(terminator) = spec.format.frame() else {
            unreachable!("a spec for lines")
        };
        (Just(spec), specs::lines_object(terminator))
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_oracle_sorts_as_the_system_does((spec, object) in case()) {
        let arguments = arguments(&spec);
        let expect = system_sort(&arguments, &object);
        let found = sort_reference(&spec, &[object]).expect("a valid case");
        let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(shown(&found), shown(&expect), "sort {arguments:?}");
        assert!(found == expect);
    }
}
