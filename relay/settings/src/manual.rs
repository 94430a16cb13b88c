//! Manual pages of a program and of each of its commands, from the same definition as `--help`.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

/// Writes one page for the program and one for each of its commands: `relay.1`, `relay-completions.1`, and so on. Makes
/// the folder if it is missing, and replaces pages that are there. No page has a date, so the same program always writes
/// the same bytes.
///
/// # Errors
/// The folder or a page in it cannot be written.
pub fn write_manual(command: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let source = command.render_version().trim_end().to_owned();
    let mut command = command.disable_help_subcommand(true);
    command.build();
    write_pages(&command, &source, folder)
}

fn write_pages(command: &Command, source: &str, folder: &Path) -> io::Result<()> {
    let page = Man::new(command.clone()).source(source);
    fs::write(folder.join(page.get_filename()), render(&page, command)?)?;
    command.get_subcommands().try_for_each(|below| write_pages(below, source, folder))
}

/// As the library does it, except for the text after the options: it would run lines and columns together.
fn render(page: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if let Some(after) = command.get_after_long_help() {
        write_sections(&after.to_string(), &mut text)?;
    }
    Ok(text)
}

/// A line without indentation is a heading. What is below it stays as it is.
fn write_sections(help: &str, text: &mut impl Write) -> io::Result<()> {
    let mut roff = Roff::new();
    for line in help.lines().filter(|line| !line.trim().is_empty()) {
        if line.starts_with(' ') {
            roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
        } else {
            roff.control("fi", []);
            roff.control("SH", [line.trim_end_matches(':').to_uppercase().as_str()]);
            roff.control("nf", []);
        }
    }
    roff.control("fi", []);
    roff.to_writer(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn program() -> Command {
        let port = Arg::new("port").long("port").env("TOOL_PORT").default_value("80").help("Where it listens");
        let look =
            Command::new("look").about("Look at it").after_long_help("Output:\n  ok   it is\n  FAIL it is not\n");
        let after = "Exit codes:\n  0   done\n  .5  half\n\nSee also:\n  a page\n";
        Command::new("tool").version("1.2").about("Does it").arg(port).subcommand(look).after_long_help(after)
    }

    #[test]
    fn every_command_has_a_page_with_its_options_and_the_lines_below_them_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("share/man1");
        write_manual(program(), &below).unwrap();
        let mut names: Vec<_> = fs::read_dir(&below).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["tool-look.1", "tool.1"]);
        let page = fs::read_to_string(below.join("tool.1")).unwrap();
        for part in [
            ".TH tool 1  \"tool 1.2\"",
            "TOOL_PORT",
            "tool\\-look(1)",
            ".SH \"EXIT CODES\"\n.nf\n0   done\n\\&.5  half\n.fi\n.SH \"SEE ALSO\"\n.nf\na page\n.fi\n",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let page = fs::read_to_string(below.join("tool-look.1")).unwrap();
        assert!(page.contains("\"tool 1.2\"") && page.contains("ok   it is\nFAIL it is not\n"), "{page}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(write_manual(program(), &file.path().join("man1")).is_err());
    }
}
