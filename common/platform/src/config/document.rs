//! The defaults as a file of settings that says what each does: `docs/default.toml`.

use super::declare::{Section, Setting, Value};
use super::settings::SECTIONS;

/// All settings with their defaults, as TOML: section by section in the order in which a user meets
/// them, those for experts last in each.
pub fn document() -> String {
    let mut out = String::from(
        "# Every setting with its default. Each can be set in a file given by --config; unknown\n\
         # keys are refused. Made from common/platform/src/config/settings.rs.\n",
    );
    for section in SECTIONS {
        push_section(&mut out, &section);
    }
    out
}

fn push_section(out: &mut String, section: &Section) {
    out.push('\n');
    push_lines(out, section.about);
    if !section.path.is_empty() {
        out.push_str(&format!("[{}]\n", section.path));
    }
    let (experts, users): (Vec<&Setting>, Vec<&Setting>) =
        section.settings.iter().partition(|setting| setting.is_expert);
    users.iter().for_each(|setting| push_setting(out, setting));
    if !users.is_empty() && !experts.is_empty() {
        out.push_str("# For experts:\n");
    }
    experts.iter().for_each(|setting| push_setting(out, setting));
}

fn push_setting(out: &mut String, setting: &Setting) {
    push_lines(out, setting.about);
    let value = match setting.default {
        Value::Number(number) => number.to_string(),
        Value::Flag(flag) => flag.to_string(),
        Value::Text(text) => format!("{text:?}"),
    };
    out.push_str(&format!("{} = {value}{}\n", setting.name, range(setting)));
}

/// The range of a setting, where it is one.
fn range(setting: &Setting) -> String {
    match (setting.least, setting.most) {
        (0, u64::MAX) => String::new(),
        (least, u64::MAX) => format!(" # at least {least}"),
        (least, most) => format!(" # {least} to {most}"),
    }
}

fn push_lines(out: &mut String, lines: &[&str]) {
    lines.iter().for_each(|line| out.push_str(&format!("#{line}\n")));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `MUSTER_WRITE_DOCS=1` writes it.
    #[test]
    fn the_documented_defaults_are_those_of_the_code() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/default.toml");
        if std::env::var_os("MUSTER_WRITE_DOCS").is_some() {
            std::fs::write(path, document()).expect("written");
        }
        let written = std::fs::read_to_string(path).expect("docs/default.toml");
        assert_eq!(written, document(), "MUSTER_WRITE_DOCS=1 with this test writes it anew");
        let read = super::super::Config::layered(&[&written]).expect("settings");
        assert_eq!(read, super::super::Config::profile(Default::default()).expect("defaults"));
    }

    #[test]
    fn a_user_meets_few_settings() {
        let count = |is_expert: bool| {
            let all = SECTIONS.iter().flat_map(|section| section.settings);
            all.filter(|setting| setting.is_expert == is_expert).count()
        };
        assert!((20..=30).contains(&count(false)), "{} and {}", count(false), count(true));
    }
}
