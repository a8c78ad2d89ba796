//! `muster completions SHELL` and `muster man [DIR]`: both are made of the command line as clap
//! knows it, so they name what this very program takes.

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::exit::Exit;
use crate::output;

/// Prints what makes a shell complete muster's commands and options.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Exit> {
    print(&completions_of(args.shell))
}

/// Prints the manual page of muster, or writes a page for each command into a folder.
pub(crate) fn man(args: &ManArgs) -> Result<(), Exit> {
    match &args.dir {
        Some(dir) => pages_in(dir),
        None => print(&page()?),
    }
}

fn completions_of(shell: clap_complete::Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "muster", &mut text);
    text
}

fn page() -> Result<Vec<u8>, Exit> {
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(Cli::command()).render(&mut text);
    rendered.map_err(|e| Exit::failed(format!("cannot write the manual page: {e}")))?;
    Ok(text)
}

fn pages_in(dir: &Path) -> Result<(), Exit> {
    let refuse = |e: std::io::Error| {
        Exit::failed(format!("cannot write manual pages to {}: {e}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(refuse)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(refuse)?;
    output::line(&format!("manual pages written to {}", dir.display()));
    Ok(())
}

/// To standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &[u8]) -> Result<(), Exit> {
    match std::io::stdout().lock().write_all(text) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Exit::failed(format!("cannot print: {e}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn commands() -> Vec<String> {
        let names: Vec<String> =
            Cli::command().get_subcommands().map(|one| one.get_name().to_owned()).collect();
        assert!(names.len() >= 16 && names.iter().any(|name| name == "sort"), "{names:?}");
        names
    }

    #[test]
    fn completions_of_every_shell_know_every_command() {
        for shell in clap_complete::Shell::value_variants() {
            let text = String::from_utf8(completions_of(*shell)).expect("UTF-8");
            for name in commands() {
                assert!(text.contains(&name), "{shell}: no {name}");
            }
            assert!(
                text.contains("partitions") && text.contains("http"),
                "{shell}: options are missing"
            );
        }
    }

    #[test]
    fn there_is_a_page_for_every_command_and_the_first_lists_them() {
        let text = String::from_utf8(page().expect("a page")).expect("UTF-8");
        let dir = tempfile::tempdir().expect("dir");
        pages_in(dir.path()).expect("pages");
        for name in commands() {
            assert!(
                text.contains(&format!("muster\\-{}", name.replace('-', "\\-"))),
                "{name} is not in\n{text}"
            );
            let page = std::fs::read_to_string(dir.path().join(format!("muster-{name}.1")));
            assert!(page.is_ok_and(|page| page.contains(".TH")), "no page of {name}");
        }
        let sort = std::fs::read_to_string(dir.path().join("muster-sort.1")).expect("a page");
        assert!(sort.contains("overwrite") && sort.contains("partitions"), "{sort}");
    }
}
